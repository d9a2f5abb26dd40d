"""The engine on the library: answers, the promise of the same bits, memory, graphs and profiles."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import LLM, SamplingParams, ops
from atb_models.demo import questions
from atb_models.errors import ConfigError
from atb_models.graph import meta_model, meta_step, trace
from atb_models.layers.parameter import fillings
from atb_models.layers.storage import METHODS
from atb_models.limits import Limits
from atb_models.models.config_reader import load_model_config
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native import rope
from atb_models.ops.native.build import levels_of
from atb_models.ops.native.library import active, cpu_flags
from atb_models.plan.memory import rank_memory
from tests.crosses import crossed
from tests.records import map_tensors, slots_step
from tests.tiny import write_checkpoint, write_weights

LEVELS = [level.name for level in levels_of(platform.machine()) if level.needs <= cpu_flags()]
DTYPES = ("fp32", "fp16", "bf16")
STORED = (None, *METHODS)
INT8_CACHE = {"kv_dtype": "int8"}
LONG = [(7 * i * i + 3 * i) % 2400 + 5 for i in range(150)]
PROMPTS = [LONG, LONG[:40], LONG[20:90], [9, 8, 7], LONG[:129]]
# The cases of the default suite, with each type and each storage; how a step is cut is the same for all of them.
OFTEN: list[tuple[str, dict[str, str]]] = [
    ("fp32", {}), ("fp16", {}), ("bf16", INT8_CACHE), ("bf16", {"quantize": "w8a16"}), ("fp16", {"quantize": "w4a16"}),
    ("bf16", {"quantize": "w8a8_dynamic"}),
]  # fmt: skip
DRAWN = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.95, seed=5, ignore_eos=True)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_there_is_a_level() -> None:
    assert LEVELS and active().level is not None


@pytest.mark.parametrize(("level", "dtype", "quantize"), crossed(LEVELS, DTYPES, STORED))
def test_the_toys_answers(monkeypatch: pytest.MonkeyPatch, level: str, dtype: str, quantize: str | None) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", level)
    asked = questions()[:: 1 if dtype == "fp16" else 8]
    with LLM(dtype=dtype, device="cpu", quantize=quantize) as llm:
        assert ops.attention_sublayer.backend == ops.feed_forward_sublayer.backend == "cpu"
        assert ops.quant_linear.backend == ops.quant_moe_experts.backend == "cpu"
        chats = [[{"role": "user", "content": str(one["question"])}] for one in asked]
        outs = llm.chat(chats, [SamplingParams(max_tokens=int(one["max_tokens"])) for one in asked])
    assert [out.text for out in outs] == [one["answer"] for one in asked]


def alone(params: SamplingParams, **engine: Any) -> list[list[int]]:
    with LLM(**engine, prefix_cache=False) as llm:
        return [llm.generate([prompt], params)[0].token_ids for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        case if case in OFTEN else pytest.param(*case, marks=pytest.mark.full)
        for case in itertools.product(DTYPES, ({}, INT8_CACHE, *({"quantize": method} for method in METHODS)))
    ],
)
def test_the_same_request_gives_the_same_bits(dtype: str, stored: dict[str, str]) -> None:
    """Alone; in company; in chunks of 13 tokens; with preemption; after a prefix hit; with two threads."""
    engine: dict[str, Any] = dict(dtype=dtype, **stored, device="cpu", block_size=16, max_seq_len=512)
    torch.set_num_threads(1)
    expected = alone(DRAWN, **engine)
    with LLM(**engine) as llm:
        together = [out.token_ids for out in llm.generate(PROMPTS, DRAWN)]
        again = [out.token_ids for out in llm.generate(PROMPTS, DRAWN)]
        assert llm.metrics()["prefix_hit_tokens"] > 0
    assert together == expected and again == expected
    with LLM(**engine, max_prefill_tokens=13) as llm:
        assert [out.token_ids for out in llm.generate(PROMPTS, DRAWN)] == expected
    with LLM(**engine, kv_blocks=14, prefix_cache=False) as llm:
        assert [out.token_ids for out in llm.generate(PROMPTS, DRAWN)] == expected
        assert llm.metrics()["preemptions"] > 0
    torch.set_num_threads(2)
    assert alone(DRAWN, **engine) == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", [{}, {"quantize": "w8a16"}, INT8_CACHE])
def test_logits_do_not_depend_on_chunks_or_company(dtype: str, stored: dict[str, str]) -> None:
    engine: dict[str, Any] = dict(dtype=dtype, **stored, device="cpu", block_size=16, max_seq_len=512)
    with LLM(**engine, prefix_cache=False) as llm:
        whole = llm.prompt_logits(LONG)
        company = llm.prompt_logits([LONG, LONG[3:50], LONG[:1]])
    with LLM(**engine, max_prefill_tokens=7) as llm:
        chunked = llm.prompt_logits(LONG)
    assert torch.equal(company[0], whole) and torch.equal(chunked, whole)


@pytest.mark.parametrize(("family", "dtype"), [("olmoe", "fp32"), ("olmoe", "bf16"), ("qwen3", "bf16")])
def test_logits_with_normed_heads_do_not_depend_on_chunks_company_or_threads(
    family: str, dtype: str, tmp_path: Path
) -> None:
    """Sums of squares over all heads are torch's, those of one head the library's."""
    write_checkpoint(tmp_path, family=family, hidden_size=1024, num_hidden_layers=2, initializer_range=0.03)
    engine: dict[str, Any] = dict(dtype=dtype, device="cpu", block_size=16, prefix_cache=False)
    prompt = [token % 250 for token in LONG]
    torch.set_num_threads(1)
    with LLM(tmp_path, **engine) as llm:
        whole = llm.prompt_logits(prompt)
        company = llm.prompt_logits([prompt, prompt[3:50], prompt[:1]])
    torch.set_num_threads(2)
    with LLM(tmp_path, **engine, max_prefill_tokens=1) as llm:
        chunked = llm.prompt_logits(prompt[:40])
    assert torch.equal(company[0], whole) and torch.equal(chunked, whole[:40]) and whole.std() > 0.1


@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_are_planned_and_held(tmp_path: Path, tied: bool) -> None:
    write_checkpoint(tmp_path, tie_word_embeddings=tied)
    config = load_model_config(tmp_path)
    ops.bind("cpu")
    planned = rank_memory(config, torch.float16, 1, Limits(2, 16, 64, 16))
    with LLM(tmp_path, device="cpu") as llm:
        model = llm._runner.model
        assert planned.weights == sum(parameter.nbytes for parameter in model.parameters())
        packed = {name for name, filling in fillings(model).items() if filling.weight.layout.packing}
        assert {"layers.1.mlp.router.weight", "layers.0.attn.qkv.weight", "layers.1.mlp.experts.down"} <= packed
        assert ("lm_head.weight" in packed) == (not tied) and "embed.weight" not in packed


@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_the_greatest_logits_are_enough(tmp_path: Path, tp: int, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of the head is there three times, on different ranks: the lowest of the equal tokens wins."""
    tensors = write_checkpoint(tmp_path, tie_word_embeddings=tied, vocab_size=250)
    head = tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
    different = -(-len(head) // 3)
    head.copy_(head[torch.arange(len(head)) % different])
    write_weights(tmp_path, tensors)
    few = [SamplingParams(max_tokens=6, ignore_eos=True), *(
        SamplingParams(max_tokens=6, temperature=t, top_k=k, seed=k, ignore_eos=True) for t, k in ((0.7, 5), (3.0, 64))
    )]  # fmt: skip
    prompts = [[5, 6, 7], [8] * 20, [9, 10]]
    with LLM(tmp_path, device="cpu", tp=tp) as llm:
        asked: list[int] = []
        run = llm._runner.run
        monkeypatch.setattr(llm._runner, "run", lambda rows, top: asked.append(top) or run(rows, top))
        found = [[out.token_ids for out in llm.generate(prompts, one)] for one in few]
        assert set(asked) == {1, 64}
        llm.on_step = lambda *_: None
        asked.clear()
        assert [[out.token_ids for out in llm.generate(prompts, one)] for one in few] == found
        assert set(asked) == {0}
    assert all(token < different for tokens in found[0] for token in tokens)


@pytest.mark.parametrize("size", [1, 8])
def test_the_greatest_logits_are_one_node_and_little_is_gathered(demo: Path, size: int) -> None:
    config = load_model_config(demo)
    ops.bind("cpu")
    model = meta_model(config, torch.float16, size)
    graph = trace(model, meta_step([40, 1], [40, 70], 16, top_logits=1))
    counts = graph.counts()
    assert counts["TopLogits"] == 1 and "ToFloat" not in counts and counts.get("AllGather", 0) == (size > 1)
    node = next(node for node in graph.nodes if node.op == "TopLogits")
    assert (node.backend, node.module, graph.stray) == ("cpu", "lm_head", ())
    assert node.cost.read == 2 * 2 * config.vocab_size / size and node.outputs[0].shape == (2, 2)
    if size > 1:
        assert graph.nodes[-1].cost.sent == 2 * 2 * 8 * (size - 1), "two numbers of 8 bytes for each of two rows"
    every = trace(model, meta_step([40, 1], [40, 70], 16)).counts()
    assert every["ToFloat"] == 1 and "TopLogits" not in every


def test_other_planes_than_keys_and_values_of_one_width_are_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch, with and without values: values narrower than keys, and a plane beside the two."""
    ops.bind("cpu")

    def refuse(*_: object) -> None:
        raise AssertionError("the library has no form for these planes")

    monkeypatch.setattr(rope, "rope_and_cache", refuse)
    monkeypatch.setattr(rope, "check_shapes", refuse)
    q, k, v, angle = torch.randn(3, 4, 16), torch.randn(3, 2, 16), torch.randn(3, 2, 16), torch.rand(3, 8)
    step = slots_step(torch.tensor([0, 7, 8], dtype=torch.int32))
    blank = torch.zeros(2, 8, 2, 16)
    for values, planes in (
        (v[..., :12], {"k": blank, "v": blank[..., :12].contiguous()}),
        (v, {"k": blank, "v": blank, "latent": torch.zeros(2, 8, 24)}),
    ):
        cache = LayerCache((name, plane.clone()) for name, plane in planes.items())
        given = (q, k, values, angle.cos(), angle.sin(), cache, step)
        expected = ops.rope.reference(q, k, angle.cos(), angle.sin())
        assert torch.equal(ops.rope_and_cache(*given), expected[0])
        assert torch.equal(cache.k_PSMD.flatten(0, 1)[step.slots_T], expected[1])
        assert torch.equal(cache.v_PSMD.flatten(0, 1)[step.slots_T], values)
        rule = ops.rope_and_cache.shape
        assert rule is not None
        assert rule(*(map_tensors(lambda x: x.to("meta"), one) for one in given)).shape == q.shape


def test_a_level_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", "sse9")
    with pytest.raises(ConfigError, match="ATB_CPU_ISA=sse9 is no instruction set of this CPU"):
        LLM(device="cpu")
