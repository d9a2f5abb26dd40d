"""The weight of one linear map as a file has it, and the floats that it stands for."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

# Numbers that are made floats at a time, in whole rows.
BAND: Final = 1 << 22


class StaticInput(NamedTuple):
    """How a checkpoint wants the inputs of a linear map to be integers: round(x / scale + offset), float32 [1] each."""

    scale: Tensor
    offset: Tensor


class PackedWeight(Protocol):
    """A weight [O, I] as numbers in any packing, and a grid of scales; nothing is read before it is asked for.

    shape: (O, I). block: the rows and columns of the weight that share a scale, so the grid is
    [ceil(O / block[0]), ceil(I / block[1])]. has_offsets: whether something is subtracted from the numbers.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def block(self) -> tuple[int, int]: ...

    @property
    def has_offsets(self) -> bool: ...

    def where(self) -> str:
        """The file that holds the numbers."""

    def values(self, rows: range, columns: range) -> Tensor:
        """Of the weight: int8, or an 8-bit float, [rows, columns]."""

    def scales(self, rows: range, columns: range) -> Tensor:
        """Of the grid: float32 [rows, columns]."""

    def offsets(self, rows: range, columns: range) -> Tensor:
        """Of the grid, where there are offsets: float32 [rows, columns]."""

    def order(self) -> Tensor | None:
        """The column of the grid for each of the I inputs, int64 [I]; None: runs of block[1]."""

    def static_input(self) -> StaticInput | None:
        """Of the inputs, where the checkpoint fixes it."""


def blocks(items: range, size: int) -> range:
    """The blocks of `size` items that the items lie in."""
    return range(items.start // size, -(-items.stop // size))


def spread_rows(weight: PackedWeight, rows: range, columns: range, *, offsets: bool = False) -> Tensor:
    """Scales or offsets for rows of the weight and columns of the grid -> float32 [rows, columns]."""
    height = weight.block[0]
    grid = blocks(rows, height)
    found = weight.offsets(grid, columns) if offsets else weight.scales(grid, columns)
    if height == 1:
        return found
    return found[torch.arange(rows.start, rows.stop) // height - grid.start]


def dequantize_into(target: Tensor, weight: PackedWeight, rows: range, columns: range) -> None:
    """Fill `target` (any device and dtype) with (number - offset) * scale in float32, each step rounded once."""
    values = weight.values(rows, columns)
    order = weight.order()
    if order is None:
        of_columns = torch.arange(columns.start, columns.stop) // weight.block[1]
    else:
        of_columns = order[columns.start : columns.stop]
    first, last = (int(of_columns.min()), int(of_columns.max())) if len(of_columns) else (0, -1)
    of_columns, grid = of_columns - first, range(first, last + 1)
    scales = spread_rows(weight, rows, grid)
    offsets = spread_rows(weight, rows, grid, offsets=True) if weight.has_offsets else None
    step = max(1, BAND // max(1, len(columns)))
    for begin in range(0, len(rows), step):
        band = slice(begin, begin + step)
        numbers = values[band].float()
        if offsets is not None:
            numbers -= offsets[band][:, of_columns]
        numbers *= scales[band][:, of_columns]
        target[band].copy_(numbers)
