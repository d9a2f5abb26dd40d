"""The backend's calls against the recorded schemas, which needs no torch_npu, and those against the installed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.npu.conftest import Run
from tests.npu.schemas import BACKEND, RECORDED, Schema, backend_calls, recorded

PROGRAM = "from tests.npu.schemas import installed, recorded\nfor name in recorded()[1]: print(installed(name))"


def test_every_call_fits_its_schema() -> None:
    _, schemas = recorded()
    called = backend_calls()
    assert {name for name, _, _ in called} == set(schemas), "record the schemas anew, see tests/npu/schemas.py"
    for name, places, keywords in called:
        assert not (problem := Schema.parse(schemas[name]).problem(places, keywords)), f"{name}: {problem}"


def test_the_backend_takes_its_operators_from_torch_npu_alone() -> None:
    """A call by another way would escape the guard."""
    for path in BACKEND:
        assert "torch.ops" not in path.read_text() and "from torch_npu" not in path.read_text()


def test_the_recorded_version_is_the_one_that_is_installed_with_the_extra(root: Path) -> None:
    version, _ = recorded()
    assert f'"torch_npu=={version}"' in (root / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("places", "keywords", "problem"),
    [
        (1, ["gamma"], ""),
        (3, [], ""),
        (4, [], "4 arguments by place, 3 are taken"),
        (2, ["eps"], "no parameter eps"),
        (2, ["gamma"], "an argument twice"),
        (1, ["epsilon"], "gamma missing"),
        (2, ["bias"], ""),
    ],
)
def test_what_the_guard_sees(places: int, keywords: list[str], problem: str) -> None:
    text = "npu::f(Tensor input, Tensor gamma, float epsilon=9.9e-07, *, Tensor? bias=None) -> (Tensor, Tensor)"
    assert Schema.parse(text).problem(places, keywords) == problem


def test_the_recorded_schemas_are_the_installed_ones(soft_npu: Run) -> None:
    printed = soft_npu("-c", PROGRAM).stdout
    assert [line for line in printed.splitlines() if line.startswith("npu::")] == RECORDED.read_text().splitlines()[1:]
