"""Weights quantised while they are read: a checkpoint of floats seen as one of int8 rows with a scale each."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.models.weights.finite import count_not_finite
from atb_models.models.weights.names import scale_name
from atb_models.models.weights.source import WeightSource

LARGEST = 127  # of a symmetric int8: -128 is not used
# Numbers that are quantised at a time, in float32; whole rows, and at least one.
BAND = 1 << 20


class QuantizingWeights:
    """The tensors of `source`; those in `names`, matrices of output rows, are int8 and have scales beside them.

    A row's scale is its largest magnitude / 127 in float32 (1 for a row of zeros), its integers are the quotients
    rounded to the nearest, halves to even. Scales are those of whole rows, so every cut of a tensor holds cuts of the
    same integers. A row that has an infinite number, or none, is all zeros with a scale that is not finite, and so are
    the products with it.
    """

    def __init__(self, source: WeightSource, names: set[str]) -> None:
        self._source = source
        self._names = names
        self._weights = {scale_name(name): name for name in names}
        # Scales of rows that were read as integers, until they are read themselves; -1: not yet known.
        self._scales: dict[str, Tensor] = {}

    def names(self) -> set[str]:
        """Raises CheckpointError for scales that the source has itself: its weights are no plain floats."""
        theirs = self._source.names()
        if own := sorted(theirs & self._weights.keys()):
            raise CheckpointError(
                f"{self._source.where(own[0])}: tensor {own[0]} is unexpected in a checkpoint that is quantised while"
                f" it is loaded ({len(own)} such tensors)"
            )
        return theirs | self._weights.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        weight = self._weights.get(name)
        return self._source.shape(name) if weight is None else self._source.shape(weight)[:-1]

    def where(self, name: str) -> str:
        return self._source.where(self._weights.get(name, name))

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """As of any source. Numbers of a quantised weight that are not finite are counted as the source has them."""
        if name in self._weights:
            first, end = (0, self.shape(name)[0]) if dim is None else (start, stop)
            target.copy_(self._take_scales(self._weights[name], first, end))
            return 0
        if name not in self._names:
            return self._source.read_into(name, dim, start, stop, target)
        return self._quantize_into(name, dim, start, stop, target)

    def close(self) -> None:
        self._source.close()

    def _quantize_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        rows, columns = self._source.shape(name)
        first, end = (start, stop) if dim == 0 else (0, rows)
        left, right = (start, stop) if dim == 1 else (0, columns)
        known = self._scales.setdefault(name, torch.full((rows,), -1.0))
        numbers = 0
        for row, band in self._bands(name, first, end):
            scale = known[row : row + len(band)] = scales_of(band)
            own = band[:, left:right]
            finite = bool(scale.isfinite().all())
            numbers += 0 if finite else count_not_finite(own)
            own.div_(scale[:, None])
            if not finite:
                own.nan_to_num_(nan=0.0)
            target[row - first :][: len(band)].copy_(own.round_().clamp_(-LARGEST, LARGEST))
        return numbers

    def _take_scales(self, name: str, first: int, end: int) -> Tensor:
        known = self._scales.pop(name, None)
        if known is not None and not (known[first:end] == -1).any():
            return known[first:end]
        return torch.cat([scales_of(band) for _, band in self._bands(name, first, end)])

    def _bands(self, name: str, first: int, end: int) -> Iterator[tuple[int, Tensor]]:
        """Whole rows from `first` to `end` as float32, in the same memory one after the other: (first row, rows)."""
        width = prod(self._source.shape(name)[1:])
        height = max(1, BAND // width)
        memory = torch.empty(min(height, end - first), width)
        for row in range(first, end, height):
            band = memory[: min(height, end - row)]
            self._source.read_into(name, 0, row, row + len(band), band)
            yield row, band


def scales_of(rows_OI: Tensor) -> Tensor:
    """The scale of each row -> [O] float32."""
    scale = torch.maximum(rows_OI.amax(-1), -rows_OI.amin(-1)) / LARGEST
    return torch.where(scale == 0, 1.0, scale)
