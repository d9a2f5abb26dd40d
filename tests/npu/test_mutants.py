"""The seeded mistakes still fit the code; whether each is caught, `python tests/npu/mutants.py` says, given time."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.npu.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_has_its_place(root: Path, mutant: Mutant) -> None:
    text = (root / mutant.file).read_text()
    assert text.count(mutant.old) == 1 and mutant.old != mutant.new
    ast.parse(text.replace(mutant.old, mutant.new))


def test_there_are_enough_of_each_kind() -> None:
    areas = Counter(mutant.area for mutant in MUTANTS)
    assert len(MUTANTS) >= 25
    assert all(areas[name] >= 3 for name in ("attention", "cache", "router", "experts", "collectives", "device"))
