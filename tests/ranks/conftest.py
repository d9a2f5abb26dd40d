"""The ranks that these tests start must find the toy programs, and none may outlive its test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kept_ranks import KeptRanks
from tests.ranks.toys import children


@pytest.fixture(autouse=True)
def rank_environment(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="module")
def only_own_ranks(kept_ranks: KeptRanks) -> None:
    """The tests follow all processes that this one has started."""
    kept_ranks.close()


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    before = children()
    yield
    assert children() == before
