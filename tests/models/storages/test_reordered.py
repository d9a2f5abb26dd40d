"""Rows that are read in another order than they lie in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atb_models.models.weights.checkpoint import open_checkpoint
from atb_models.models.weights.seen import reordered
from atb_models.models.weights.seen.reordered import Reordered

ORDER = (2, 0, 3, 1, 4)


@pytest.mark.parametrize("band", [1, 40, 1 << 22])
@pytest.mark.parametrize("shape", [(20, 3), (20,)])
def test_any_range_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], band: int) -> None:
    """Ranges that begin and end within a run of rows, at one, or lie within one; whole runs in bands."""
    monkeypatch.setattr(reordered, "BAND", band)
    tensor = torch.randn(shape)
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    expected = tensor[[5 * run + row for run in range(4) for row in ORDER]]
    source = Reordered(open_checkpoint(tmp_path), ORDER)
    for start, stop in ((0, 20), (0, 5), (3, 17), (5, 15), (6, 9), (4, 6), (7, 7), (19, 20)):
        target = torch.full((stop - start, *shape[1:]), 9.0)
        assert source.read_into("a", 0, start, stop, target) == 0
        assert torch.equal(target, expected[start:stop])
    target = torch.empty(shape, dtype=torch.float16)
    source.read_into("a", None, 0, 0, target)
    assert torch.equal(target, expected.half())


def test_numbers_that_are_not_finite_count_where_they_are_read(tmp_path: Path) -> None:
    tensor = torch.zeros(10, 2)
    tensor[2], tensor[8, 0] = torch.inf, torch.nan
    save_file({"a": tensor}, tmp_path / "model.safetensors")
    source = Reordered(open_checkpoint(tmp_path), ORDER)
    for start, stop, found in ((0, 10, 3), (0, 1, 2), (1, 7, 0), (1, 10, 1), (7, 8, 1), (8, 10, 0)):
        assert source.read_into("a", 0, start, stop, torch.empty(stop - start, 2)) == found
    assert source.read_into("a", 0, 0, 5, torch.empty(5, 2)) == 2
