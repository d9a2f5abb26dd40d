"""Parity at every level of the CPU library that this machine has, and by torch alone.

The default suite runs each level on one rank with one checkpoint in each dtype; `--full` all checkpoints in all dtypes
on 1, 4 and 8 ranks.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from atb_models.ops.native.build import levels_of
from atb_models.ops.native.library import active, cpu_flags
from tests.kept_ranks import KeptRanks
from tests.parity.checks import run
from tests.parity.test_golden import CHECKPOINTS

LEVELS = ["reference", *(level.name for level in levels_of(platform.machine()) if level.needs <= cpu_flags())]
DEFAULT = {("deepseek", 1, "fp32"), ("qwen", 1, "fp16"), ("xverse", 1, "bf16")}


def cross() -> Iterator[object]:
    for level, *one in product(LEVELS, CHECKPOINTS, (1, 4, 8), ("fp32", "fp16", "bf16")):
        yield pytest.param(level, *one, marks=[] if tuple(one) in DEFAULT else [pytest.mark.full])


def run_at(level: str, folder: str, dtype: str) -> None:
    """What the ranks call: they stay for other tests, so the level is theirs for this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATB_CPU_ISA", level)
        chosen = active().level
        assert level == ("reference" if chosen is None else chosen.name)
        run(folder, "batched", dtype)


@pytest.mark.parametrize(("level", "name", "tp", "dtype"), list(cross()))
def test_golden(shared: Path, kept_ranks: KeptRanks, level: str, name: str, tp: int, dtype: str) -> None:
    folder = str(shared / "golden" / name)
    if tp == 1:
        run_at(level, folder, dtype)
    else:
        kept_ranks.run("tests.parity.test_levels:run_at", tp, level, folder, dtype)
