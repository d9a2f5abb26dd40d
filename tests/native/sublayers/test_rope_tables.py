"""The tables of rotary positions: the library against float64, for every angle that a position can have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.ops.native.library import Library
from atb_models.ops.native.rope import rope_tables


def positions(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("factor", [1.0, 0.83])
def test_no_further_from_the_exact_values_than_rounding(library: Library, factor: float) -> None:
    positions_T = torch.cat((torch.arange(5000), torch.randint(1 << 20, (2000,)))).int()
    frequencies_D = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    angle_TD = (positions_T.float()[:, None] * frequencies_D).double()
    cos_TD, sin_TD = rope_tables(library, positions_T, frequencies_D, factor)
    for ours, exact in ((cos_TD, angle_TD.cos()), (sin_TD, angle_TD.sin())):
        assert ours.shape == exact.shape and ours.dtype == torch.float32
        rounding = exact.float().double().abs() * 2.0**-24 * factor  # half a unit in the last place
        error = (ours.double() - exact * torch.tensor(factor).double()).abs()
        assert (error <= rounding * (1.01 if factor == 1 else 3) + 2.0**-50).all()


def test_a_row_does_not_depend_on_the_others_or_on_threads(library: Library) -> None:
    positions_T, frequencies_D = torch.randint(1 << 17, (300,)).int(), torch.rand(37)
    torch.set_num_threads(3)
    together = rope_tables(library, positions_T, frequencies_D, 1.0)
    torch.set_num_threads(1)
    for row in (0, 7, 299):
        alone = rope_tables(library, positions_T[row : row + 1], frequencies_D, 1.0)
        assert all(torch.equal(one[0], many[row]) for one, many in zip(alone, together, strict=True))


def test_near_what_torch_gives(library: Library) -> None:
    given = torch.arange(3000).int(), torch.rand(20), 1.5
    for ours, theirs in zip(rope_tables(library, *given), ops.rope_tables.reference(*given), strict=True):
        assert (ours - theirs).abs().max() < 1e-6


def test_no_tokens(library: Library) -> None:
    assert [x.shape for x in rope_tables(library, positions(), torch.rand(4), 1.0)] == [(0, 4), (0, 4)]


def test_what_is_refused(library: Library) -> None:
    frequencies_D = torch.rand(4)
    for wrong, match in (
        ((positions(1).long(), frequencies_D), r"RopeTables: positions \(1,\) of torch.int64"),
        ((positions(1, 2)[None], frequencies_D), r"RopeTables: positions \(1, 2\)"),
        ((positions(1, 2, 3)[::2], frequencies_D), "RopeTables: the last 1 of"),
        ((positions(1).to("meta"), frequencies_D), "RopeTables: a tensor on meta"),
        ((positions(1), frequencies_D.double()), "RopeTables: inverse frequencies .* of torch.float64"),
        ((positions(1), frequencies_D[None]), r"RopeTables: inverse frequencies \(1, 4\)"),
        ((positions(1), frequencies_D[::2]), "RopeTables: the last 1 of"),
    ):
        with pytest.raises(ValueError, match=match):
            rope_tables(library, *wrong, 1.0)
