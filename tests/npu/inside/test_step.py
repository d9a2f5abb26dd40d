"""What a launched step does on the device: which operators, how many, and how often the host waits.

Replayed ones are in test_capture.py.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from atb_models import LLM, SamplingParams
from atb_models.machine.memory import free_memory
from tests.npu.soft import counts
from tests.tiny import write_checkpoint

LAYERS, MOE_LAYERS = 3, 2


@pytest.fixture(scope="module", params=["auto", "int8"])
def llm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> LLM:
    """With both kinds of KV cache."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, hidden_size=256, num_attention_heads=2, num_key_value_heads=2)
    with LLM(folder, device="npu", max_batch_size=4, graph_capture=False, kv_dtype=request.param) as llm:
        yield llm


def steps(llm: LLM, prompts: list[list[int]], tokens: int) -> tuple[int, Counter[str]]:
    """Run; -> the number of steps, and the calls of torch_npu's operators."""
    before = llm.metrics()["steps"]
    counts.reset()
    llm.generate(prompts, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True))
    native = {name: calls for name, calls in counts.OPERATORS.items() if name.startswith("npu::")}
    return llm.metrics()["steps"] - before, Counter(native)


@pytest.mark.parametrize(("prompts", "mixed"), [([[1] * 20], 0), ([[1], [2, 3], [4] * 70, [5] * 3], 1)])
def test_operators_of_a_step(llm: LLM, prompts: list[list[int]], mixed: int) -> None:
    """mixed: steps with single tokens and with chunks, for which an int8 cache takes two calls of attention."""
    taken, calls = steps(llm, prompts, 6)
    int8 = {"dynamic_quant": 2 * LAYERS, "scatter_nd_update_": 2 * LAYERS}
    if llm.config.kv_dtype == "int8":
        assert calls["npu::npu_fused_infer_attention_score"] == LAYERS * (taken + mixed)
        calls["npu::npu_fused_infer_attention_score"] = LAYERS * taken
    per_step = {name.removeprefix("npu::npu_"): count / taken for name, count in calls.items()}
    assert per_step == (int8 if llm.config.kv_dtype == "int8" else {}) | {
        "rms_norm": 1,
        "add_rms_norm": 2 * LAYERS,
        "rotary_mul": 2 * LAYERS,
        "scatter_pa_kv_cache": LAYERS,
        "fused_infer_attention_score": LAYERS,
        "swiglu": 1 + 2 * MOE_LAYERS,  # the dense layer; routed and shared experts
        "moe_gating_top_k": MOE_LAYERS,
        "moe_init_routing_v2": MOE_LAYERS,
        "grouped_matmul": 2 * MOE_LAYERS,
        "moe_token_unpermute": MOE_LAYERS,
    }


def test_a_step_waits_for_its_tokens_and_nothing_else(llm: LLM) -> None:
    """One transfer to the device, one back; no synchronisation, no value looked at in between."""
    steps(llm, [[1, 2, 3]], 2)
    taken, _ = steps(llm, [[1], [2, 3], [4] * 70], 8)
    assert counts.COPIES == {"to_device": taken, "to_host": taken}
    assert counts.waits() == {"copy to the host": taken}


def test_memory_that_was_given_back_is_free(llm: LLM) -> None:
    """torch's allocator keeps it for itself; an earlier model of the process may have left it there."""
    device = torch.device("npu", 0)
    before = free_memory(device).own
    torch.empty(1 << 28, dtype=torch.uint8, device=device)
    assert torch.npu.memory_reserved() > 1 << 28
    assert free_memory(device).own >= before
