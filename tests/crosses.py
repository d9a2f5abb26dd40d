"""Crosses of parameters: the default suite runs as many of their cases as bring every two values together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

LONGEST_NAME = 24
Case = tuple[int, ...]  # for each parameter the place of its value


def crossed(*parameters: Sequence[Any]) -> list[Any]:
    """All combinations of the parameters' values as cases for `parametrize`; which the default suite leaves out is
    marked full. Any two values of different parameters meet in a case that it runs.

    A value that is a list stands for several arguments.
    """
    cases = list(itertools.product(*(range(len(values)) for values in parameters)))
    kept = _pairwise(cases)
    found = []
    for case in cases:
        chosen = [values[place] for values, place in zip(parameters, case, strict=True)]
        arguments = [one for value in chosen for one in (value if isinstance(value, list) else [value])]
        name = "-".join(_name(value, place) for value, place in zip(chosen, case, strict=True))
        found.append(pytest.param(*arguments, marks=[] if case in kept else [pytest.mark.full], id=name))
    return found


def _name(value: Any, place: int) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_NAME else str(place)


def _pairwise(cases: list[Case]) -> set[Case]:
    """Of the cases so many that they have all pairs, each time the first of those with the most new pairs."""
    kept: set[Case] = set()
    missing = {pair for case in cases for pair in _pairs(case)}
    while missing:
        best = max(cases, key=lambda case: len(_pairs(case) & missing))
        kept.add(best)
        missing -= _pairs(best)
    return kept


def _pairs(case: Case) -> set[tuple[tuple[int, int], ...]]:
    return set(itertools.combinations(enumerate(case), 2))
