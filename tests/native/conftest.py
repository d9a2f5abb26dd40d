"""The library at every level that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from atb_models.ops.native.build import LEVELS as ALL
from atb_models.ops.native.build import build, find_compiler
from atb_models.ops.native.library import Library, load, unusable
from tests.native.cases import LEVELS


@pytest.fixture(scope="session")
def built() -> list[str]:
    """The levels of this machine, compiled where that has not been done since the sources changed."""
    stale = [level for level in ALL if level.name in LEVELS and unusable(level)]
    if stale:
        compiler = find_compiler()
        if compiler is None:
            pytest.skip("the library is not built, and there is no C++ compiler")
        complaints = [outcome.complaint for outcome in build(stale, compiler) if outcome.complaint]
        assert not complaints, complaints
    return LEVELS


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest, built: list[str]) -> Library:
    return load(request.param)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same numbers each time, and torch's threads as they were."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
