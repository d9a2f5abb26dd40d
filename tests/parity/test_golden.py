"""Parity with the published code's results under every condition of the engine.

The default suite runs every condition on one rank and one batched run on 2, 4 and 8; `--full` the whole cross.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from atb_models import LLM, SamplingParams
from tests.parity.golden import PROMPTS, Golden

CHECKPOINTS = ("deepseek", "deepseek_d128")
GREEDY = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)


@dataclass(frozen=True)
class Condition:
    """Engine arguments and what `metrics()` must show to prove that the condition came about."""

    arguments: dict[str, Any] = field(default_factory=dict)
    together: bool = True  # all prompts in one call, or one call each
    happened: tuple[str, int] = ("steps", 1)  # a counter of metrics() and its least value


CONDITIONS = {
    "one_by_one": Condition(together=False),
    "batched": Condition(happened=("largest_batch", 5)),
    "chunks_of_16": Condition({"max_prefill_tokens": 16}, happened=("chunks", 30)),
    "blocks_of_16": Condition({"block_size": 16}, happened=("total_blocks", 5 * 1024 // 16)),
    "preempted": Condition({"block_size": 16, "kv_blocks": 34, "prefix_cache": False}, happened=("preemptions", 1)),
    "prefix_hit": Condition({"block_size": 16}, happened=("prefix_hit_tokens", 300)),
}


@pytest.fixture(params=CHECKPOINTS)
def golden(request: pytest.FixtureRequest, shared: Any) -> Golden:
    return Golden(shared / "golden" / request.param)


def run(golden: Golden, name: str, dtype: str, tp: int) -> None:
    """Check logits and greedy tokens of all prompts under one condition."""
    condition = CONDITIONS[name]
    arguments = {"max_batch_size": 5, **condition.arguments}
    with LLM(golden.path, dtype=dtype, tp=tp, device="cpu", **arguments) as llm:
        if name == "prefix_hit":
            llm.generate(golden.prompts, SamplingParams(max_tokens=1, temperature=0))
        batches = [golden.prompts] if condition.together else [[prompt] for prompt in golden.prompts]
        logits = [one for batch in batches for one in llm.prompt_logits(batch)]
        outputs = [one for batch in batches for one in llm.generate(batch, GREEDY)]
        counter, least = condition.happened
        assert llm.metrics()[counter] >= least, f"{name}: {counter} is {llm.metrics()[counter]}"
    golden.check_logits(logits, dtype)
    if dtype == "fp32":
        for k in PROMPTS:
            golden.check_greedy(k, outputs[k].token_ids)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", CONDITIONS)
def test_one_rank(golden: Golden, name: str, dtype: str) -> None:
    run(golden, name, dtype, tp=1)


@pytest.mark.parametrize(("tp", "dtype"), [(2, "fp32"), (4, "fp16"), (8, "bf16")])
def test_batched_on_ranks(golden: Golden, tp: int, dtype: str) -> None:
    run(golden, "batched", dtype, tp)


def crossed() -> Iterator[tuple[str, int, str]]:
    for name in CONDITIONS:
        yield from ((name, tp, "fp32") for tp in (2, 4, 8))
        yield from ((name, tp, dtype) for tp in (4, 8) for dtype in ("fp16", "bf16"))


@pytest.mark.full
@pytest.mark.parametrize(("name", "tp", "dtype"), list(crossed()))
def test_cross(golden: Golden, name: str, tp: int, dtype: str) -> None:
    run(golden, name, dtype, tp)


def test_prefix_hit_changes_no_answer(golden: Golden) -> None:
    with LLM(golden.path, dtype="fp32", device="cpu", block_size=16) as llm:
        first, second = (llm.generate(golden.prompts, GREEDY) for _ in range(2))
        assert llm.metrics()["prefix_hit_tokens"] >= 400
    assert [out.token_ids for out in first] == [out.token_ids for out in second]
