"""Parity with the published code on the pretend device: the measures of tests/parity, through torch_npu's calls.

Checkpoints whose heads are not 128 wide show that padding them changes nothing. Ranks talk through the process group of
HCCL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

from atb_models import LLM
from tests.npu.ranks import Ranks
from tests.parity.checks import NPU_CONDITIONS
from tests.parity.golden import Golden

FIRST = ("deepseek", "deepseek_d128", "qwen", "xverse")
# Families that came later, with the number of ranks and the dtype that the default suite has them in. Each of 8 ranks
# holds a copy of one of their four KV heads.
LATER = {"qwen3_moe": (8, "fp16"), "mixtral": (8, "bf16")}
CHECKPOINTS = (*FIRST, *LATER)
CONDITIONS = ("batched", "one_by_one", "chunks_of_16", *NPU_CONDITIONS)
LONG = 132  # tokens of an answer: each sequence grows beyond its first block
AMPLE, TIGHT = 6, 4  # KV blocks for three of them
dtypes = pytest.mark.parametrize("dtype", ["fp16", "bf16"])
StartRanks = Callable[[int], Ranks]
checkpoints = pytest.mark.parametrize("name", CHECKPOINTS)


@pytest.fixture(scope="module")
def ranks() -> Iterator[StartRanks]:
    """So many ranks, the same ones for all tests."""
    with ExitStack() as started:
        yield cache(lambda size: started.enter_context(Ranks(size)))


def all_prompts() -> Iterator[object]:
    for name, tp, dtype in product(CHECKPOINTS, (1, 8), ("fp16", "bf16")):
        default = name in FIRST or LATER[name] == (tp, dtype)
        yield pytest.param(name, tp, dtype, marks=[] if default else [pytest.mark.full])


@pytest.mark.parametrize(("name", "tp", "dtype"), list(all_prompts()))
def test_all_prompts(shared: Path, ranks: StartRanks, name: str, tp: int, dtype: str) -> None:
    ranks(tp).run("parity", str(shared / "golden" / name), "batched", dtype)


@pytest.mark.parametrize("condition", CONDITIONS[1:])
def test_conditions(shared: Path, ranks: StartRanks, condition: str) -> None:
    ranks(1).run("parity", str(shared / "golden" / "deepseek_d128"), condition, "fp16")


@pytest.mark.parametrize(("tp", "blocks", "tokens"), [(1, AMPLE, LONG), (1, TIGHT, LONG), (8, AMPLE, 8)])
def test_answers(shared: Path, ranks: StartRanks, tp: int, blocks: int, tokens: int) -> None:
    check_answers(shared / "golden" / "deepseek_d128", ranks(tp), "fp16", blocks, tokens)


def check_answers(folder: Path, ranks: Ranks, dtype: str, blocks: int, tokens: int = LONG) -> None:
    """Generated tokens, too, get logits that deviate no more than the published code's: from those which the same text
    has as a prompt in fp32 on the CPU, where tests/parity compares them with the published ones."""
    texts, logits, preemptions = ranks.run("decode", str(folder), dtype, ranks.size, blocks, tokens)
    assert (preemptions > 0) == (blocks == TIGHT)
    with LLM(folder, dtype="fp32", device="cpu") as llm:
        exact = [lines[-tokens - 1 : -1] for lines in llm.prompt_logits(texts)]
    Golden(folder).check_deviation((torch.cat(logits) - torch.cat(exact)).abs().mean(dim=1), dtype)


@pytest.mark.full
@dtypes
@checkpoints
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_conditions_crossed(shared: Path, ranks: StartRanks, name: str, dtype: str, condition: str, tp: int) -> None:
    ranks(tp).run("parity", str(shared / "golden" / name), condition, dtype)


@pytest.mark.full
@dtypes
@pytest.mark.parametrize("name", ["deepseek_d128", "qwen"])
def test_zero_heads(shared: Path, ranks: StartRanks, name: str, dtype: str) -> None:
    """Three ranks have 3, 3 and 2 of the 8 heads."""
    ranks(3).run("parity", str(shared / "golden" / name), "batched", dtype)


@pytest.mark.full
@dtypes
@checkpoints
@pytest.mark.parametrize("blocks", [AMPLE, TIGHT])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_answers_crossed(shared: Path, ranks: StartRanks, name: str, dtype: str, blocks: int, tp: int) -> None:
    check_answers(shared / "golden" / name, ranks(tp), dtype, blocks)
