"""Memory at the real widths, two layers: what torch_npu's allocator gives out is what the plan says from config.json.

The plan keeps slack for what an allocator holds back beyond what is in use: peaks in use are compared without it, and
what is held must stay within the whole and a segment. Rank 0 of eight is alone here and receives its own share from
everybody.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import LLM, SamplingParams
from atb_models.engine import llm as engine
from atb_models.engine.kv_pool import engine_limits
from atb_models.machine.device import rank_device
from atb_models.models.dtypes import kv_torch_dtype
from atb_models.plan.memory import MOST_SLACK, rank_memory
from atb_models.ranks.group import RankGroup, RankPlacement

BLOCKS = 24
SEGMENT = 20 << 20  # what the allocator takes at a time, from the device
# In the second step, the largest in logits, the second prompt's last 128 tokens are scored and all four are sampled.
PROMPTS = [[3] * 40, [5] * 256, [7], [9] * 1500]
SAMPLED = SamplingParams(max_tokens=6, ignore_eos=True, temperature=0.7, top_k=50, top_p=0.9, repetition_penalty=1.1)
PARAMS = [SAMPLED, replace(SAMPLED, prompt_logprobs=0), SAMPLED, SAMPLED]


class Echo:
    """In place of other ranks."""

    def __init__(self, size: int) -> None:
        self.size = size

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        return torch.cat([x] * self.size, dim)

    def barrier(self, *_: object) -> None:
        pass

    def send(self, *_: object) -> None:
        pass


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESERVED_MEMORY_GB", "0")
    device, echo = rank_device("npu", 0), Echo(8)
    placement = RankPlacement(0, 8, 0, 8, "npu")
    monkeypatch.setattr(engine, "open_group", lambda *_: RankGroup(placement, device, echo, echo))


@pytest.mark.parametrize(
    ("name", "graphs", "quantize", "kv_dtype"),
    [
        ("deepseek-moe-16b-base", False, None, "auto"),
        ("qwen1.5-moe-a2.7b-chat", True, None, "auto"),
        ("xverse-moe-a4.2b", False, None, "auto"),
        ("deepseek-moe-16b-base", False, "w8a8_dynamic", "auto"),
        ("qwen1.5-moe-a2.7b-chat", True, "w8a16", "auto"),
        ("xverse-moe-a4.2b", False, "w4a16", "auto"),
        ("qwen1.5-moe-a2.7b-chat", True, None, "int8"),
        ("xverse-moe-a4.2b", False, None, "int8"),
    ],
)
def test_the_peak_is_the_plans(
    shared: Path, alone: None, name: str, graphs: bool, quantize: str | None, kv_dtype: str
) -> None:
    limits: dict[str, Any] = {"kv_blocks": BLOCKS, "max_batch_size": 4, "max_prefill_tokens": 1024, "max_seq_len": 2048}
    two: dict[str, Any] = {"config_overrides": {"num_hidden_layers": 2}, "load_format": "dummy", "quantize": quantize}
    stored = kv_torch_dtype(kv_dtype)
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    running: dict[str, Any] = {"tp": 8, "graph_capture": graphs, "kv_dtype": kv_dtype}
    with LLM(shared / "headers" / name, device="npu", **running, **two, **limits) as llm:
        config = llm._runner.model_config
        engine_has = engine_limits(llm.config, config)
        plan = rank_memory(config, torch.float16, 8, engine_has, quantize, stored)
        launched = rank_memory(config, torch.float16, 8, replace(engine_has, graph_capture=False), quantize, stored)
        loading, loaded = torch.npu.max_memory_allocated() - before, torch.npu.memory_allocated() - before
        torch.npu.reset_peak_memory_stats()
        llm.generate(PROMPTS, PARAMS)
        peak, held = torch.npu.max_memory_allocated() - before, torch.npu.max_memory_reserved() - before
    fixed = plan.weights + BLOCKS * plan.kv_block
    activations = max(launched.activations - MOST_SLACK, launched.activations // 2)
    kept = plan.activations - launched.activations
    assert (kept > 0) == graphs
    assert loaded == pytest.approx(fixed + kept, rel=0.1)
    assert peak - loaded == pytest.approx(activations, rel=0.1)
    assert peak == pytest.approx(fixed + kept + activations, rel=0.1)
    assert max(held, loading) <= plan.needed(BLOCKS) + SEGMENT
