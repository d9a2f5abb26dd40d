"""Parity with the published code's results under every condition of the engine.

The default suite runs every condition on one rank and one batched run on 2, 4 and 8; `--full` the whole cross.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from atb_models import LLM, RequestOutput, SamplingParams
from atb_models.engine.scheduler import Row
from tests.parity.golden import PROMPTS, Golden

CHECKPOINTS = ("deepseek", "deepseek_d128", "qwen", "xverse")
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
    "preempted": Condition({"block_size": 16, "kv_blocks": 34}, happened=("preemptions", 1)),
    "prefix_hit": Condition({"block_size": 16, "prefix_cache": True}, happened=("prefix_hit_tokens", 300)),
}
# In blocks that the operators of the NPU take.
NPU_CONDITIONS = {
    "blocks_of_256": Condition({"block_size": 256}, happened=("total_blocks", 5 * 1024 // 256)),
    "whole_blocks_hit": Condition({"prefix_cache": True}, happened=("prefix_hit_tokens", 384)),
}
COUNTED_UP = ("steps", "chunks", "preemptions", "prefix_hit_tokens")


@pytest.fixture(params=CHECKPOINTS)
def golden(request: pytest.FixtureRequest, shared: Any) -> Golden:
    return Golden(shared / "golden" / request.param)


def run(golden: Golden, name: str, dtype: str, tp: int, device: str = "cpu", params: SamplingParams = GREEDY) -> None:
    """Check all logits, each answer's first logits and the greedy tokens of all prompts under one condition."""
    condition = (CONDITIONS | NPU_CONDITIONS)[name]
    arguments = {"max_batch_size": 5, "prefix_cache": False, **condition.arguments}
    with LLM(golden.path, dtype=dtype, tp=tp, device=device, **arguments) as llm:
        batches = [golden.prompts] if condition.together else [[prompt] for prompt in golden.prompts]
        logits = [one for batch in batches for one in llm.prompt_logits(batch)]
        before = llm.metrics()
        outputs, firsts = generate(llm, batches, params)
        after = llm.metrics()
    counter, least = condition.happened
    happened = after[counter] - (before[counter] if counter in COUNTED_UP else 0)
    assert happened >= least, f"{name}: {counter} is {happened}"
    golden.check_logits(logits, dtype)
    for k in PROMPTS:
        golden.check_last(k, firsts[k], dtype)
        if dtype == "fp32":
            golden.check_greedy(k, outputs[k].token_ids)


def generate(
    llm: LLM, batches: list[list[list[int]]], params: SamplingParams
) -> tuple[list[RequestOutput], list[Tensor]]:
    """Outputs, and for each prompt the logits its first new token was taken from."""
    outputs: list[RequestOutput] = []
    firsts: list[Tensor] = []
    for batch in batches:
        seen: dict[int, Tensor] = {}

        def keep(rows: list[Row], logits: Tensor, _: list[int], seen: dict[int, Tensor] = seen) -> None:
            for row, line in zip([row for row in rows if row.completes], logits, strict=True):
                if len(row.seq.token_ids) == row.seq.num_prompt_tokens:
                    seen[row.seq.index] = line.to("cpu", copy=True)

        llm.on_step = keep
        outputs += llm.generate(batch, params)
        firsts += [seen[index] for index in range(len(batch))]
    return outputs, firsts


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
