"""Parity with the published code on the pretend device: the measures of tests/parity, through torch_npu's calls.

Checkpoints whose heads are not 128 wide show that padding them changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from atb_models import LLM, SamplingParams
from tests.parity.golden import Golden
from tests.parity.test_golden import NPU_CONDITIONS, run

CONDITIONS = ("one_by_one", "batched", "chunks_of_16", *NPU_CONDITIONS)
LONG = SamplingParams(max_tokens=132, temperature=0, ignore_eos=True)


def golden(shared: Path, name: str) -> Golden:
    return Golden(shared / "golden" / name)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["deepseek", "deepseek_d128", "qwen", "xverse"])
def test_batched(shared: Path, name: str, dtype: str) -> None:
    run(golden(shared, name), "batched", dtype, 1, "npu")


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "batched"])
def test_conditions(shared: Path, condition: str) -> None:
    run(golden(shared, "deepseek_d128"), condition, "fp16", 1, "npu")


@pytest.mark.parametrize(("name", "dtype"), [("deepseek_d128", "fp16"), ("qwen", "bf16")])
def test_on_eight_ranks(shared: Path, name: str, dtype: str) -> None:
    """Collectives go through the process group of HCCL."""
    run(golden(shared, name), "batched", dtype, 8, "npu")


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["deepseek", "deepseek_d128", "qwen", "xverse"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_cross(shared: Path, condition: str, name: str, tp: int, dtype: str) -> None:
    run(golden(shared, name), condition, dtype, tp, "npu")


def test_preempted_sequences_answer_as_others_do(shared: Path) -> None:
    prompts = golden(shared, "deepseek_d128").prompts[:3]
    answers = []
    for blocks in (8, 4):
        with LLM(shared / "golden" / "deepseek_d128", device="npu", kv_blocks=blocks, prefix_cache=False) as llm:
            answers.append([out.token_ids for out in llm.generate(prompts, LONG)])
            preemptions = llm.metrics()["preemptions"]
        assert (preemptions > 0) == (blocks == 4)
    assert answers[0] == answers[1]
