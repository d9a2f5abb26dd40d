"""The weights of linear maps: what they are, and how they lie in memory.

A backend may store the weights of an operation in an order or a data type of its own (`Packing`). The weight keeps its
shape for whoever prices, plans or shows it; the tensors that hold it are the backend's business alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Packing(Protocol):
    """How a backend stores the weights of an operation."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int:
        """Packed independently of the others: so many rows of a matrix, from a multiple of as many on."""

    def layout(self, plain: Layout) -> Layout:
        """How a weight that would lie like `plain` is stored instead; runs on meta tensors' shapes, before loading."""

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        """Write plain rows of a matrix, from row `first` on, to their place. unit: its number in a stack, None where
        there is but one. A matrix is packed whole, or in bands that begin and end at multiples of `rows`."""


@dataclass(frozen=True)
class Layout:
    """Of a weight [O, I], or of a stack of them [E, O, I]: its shape, and the tensors that hold it.

    dtype: of the stored values. stored: shape of the tensor that holds them. scales: shape of the float32 scales
    beside them, None without. loaded: data type in which the rows of a matrix are read. packing: None where the stored
    tensor is the weight itself, its rows one after the other.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: tuple[int, ...]
    loaded: torch.dtype
    scales: tuple[int, ...] | None = None
    packing: Packing | None = None

    @classmethod
    def plain(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
        """Of a weight that is stored as it is."""
        return cls(shape, dtype, shape, dtype)

    @property
    def quantized(self) -> bool:
        """Whether its rows are read as integers with a scale each; else a packing that has scales makes them itself."""
        return not self.loaded.is_floating_point

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, padding and scales included."""
        scales = 0 if self.scales is None else math.prod(self.scales) * torch.float32.itemsize
        return math.prod(self.stored) * self.dtype.itemsize + scales


@dataclass(frozen=True)
class Weight:
    """A weight of a linear map, as operations take it."""

    layout: Layout
    data: Tensor
    scale: Tensor | None = None

    @classmethod
    def plain(cls, weight: Tensor) -> Weight:
        """A tensor [O, I] or [E, O, I] as it is."""
        return cls(Layout.plain(tuple(weight.shape), weight.dtype), weight)

    @property
    def rows(self) -> Tensor:
        """The tensor of a weight that is not packed."""
        assert self.layout.packing is None, f"a weight packed as {self.layout.packing.name} has no rows"
        return self.data

    def dequantized(self, dtype: torch.dtype, unit: int | None = None) -> Tensor:
        """The rows of a weight that is not packed, or those of a matrix of a stack, as products take them.

        A quantised row is its integers times its scale, in float32, rounded to `dtype`; a float weight is as it is.
        """
        rows = self.rows if unit is None else self.rows[unit]
        if self.scale is None:
            return rows
        scale = self.scale if unit is None else self.scale[unit]
        return (rows * scale.unsqueeze(-1)).to(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes


def tensors_of(operands: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors among the operands of a call by name; for a weight the one that holds its values."""
    found = {name: value.data if isinstance(value, Weight) else value for name, value in operands.items()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
