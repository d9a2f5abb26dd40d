"""Weights quantised while they are read: a checkpoint of floats seen as one of integers with scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.layers.storage import Storage
from atb_models.models.weights.finite import count_not_finite
from atb_models.models.weights.names import beside_name
from atb_models.models.weights.source import SeenSource, WeightSource


class Rounding(NamedTuple):
    """Of symmetric integers: what the largest magnitude is divided by for a scale, and the ends."""

    divisor: float
    least: int
    most: int


# 8 bits: -128 is not used. 4 bits: all of -8 to 7, with the scale of compressed-tensors, the largest magnitude / 7.5;
# its steps are 7 % finer than those of / 7, and the largest number is off by half a step like any other.
RANGES: Final = {8: Rounding(127.0, -127, 127), 4: Rounding(7.5, -8, 7)}
# Numbers that are quantised at a time, in float32; whole rows, and at least one.
BAND = 1 << 20


class QuantizingWeights(SeenSource):
    """The tensors of `source`; those in `storages`, matrices of output rows, are integers and have scales beside them.

    A scale is the largest magnitude of its row, or of its group in the row, divided as RANGES says, in float32 (1 where
    all are zeros). Integers are the quotients rounded to the nearest, halves to even. Scales are those of whole rows
    and of groups of whole rows, so every cut of a tensor holds cuts of the same integers. Where there is an infinite
    number, or none, the integers are zeros with a scale that is not finite, and so are the products with them.
    """

    def __init__(self, source: WeightSource, storages: Mapping[str, Storage]) -> None:
        super().__init__(source)
        assert not any(storage.offset for storage in storages.values()), "rounding is symmetric"
        self._storages = storages
        self._weights = {beside_name(name, "scale"): name for name in storages}
        # Scales of rows that were read as integers, until they are read themselves; -1: not yet known.
        self._scales: dict[str, Tensor] = {}

    def names(self) -> set[str]:
        """Raises CheckpointError for scales that the source has itself: its weights are no plain floats."""
        theirs = self.source.names()
        if own := sorted(theirs & self._weights.keys()):
            raise CheckpointError(
                f"{self.source.where(own[0])}: tensor {own[0]} is unexpected in a checkpoint that is quantised while"
                f" it is loaded ({len(own)} such tensors)"
            )
        return theirs | self._weights.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        weight = self._weights.get(name)
        if weight is None:
            return self.source.shape(name)
        *rows, inputs = self.source.shape(weight)
        group = self._storages[weight].group
        return tuple(rows) if group is None else (*rows, -(-inputs // group))

    def where(self, name: str) -> str:
        return self.source.where(self._weights.get(name, name))

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """As of any source. Numbers of a quantised weight that are not finite are counted as the source has them."""
        if name in self._weights:
            first, end = (start, stop) if dim == 0 else (0, self.shape(name)[0])
            scales = self._take_scales(self._weights[name], first, end)
            target.copy_(scales[:, start:stop] if dim == 1 else scales)
            return 0
        if name not in self._storages:
            return self.source.read_into(name, dim, start, stop, target)
        return self._quantize_into(name, dim, start, stop, target)

    def _quantize_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        (rows, columns), storage = self.source.shape(name), self._storages[name]
        first, end = (start, stop) if dim == 0 else (0, rows)
        left, right = (start, stop) if dim == 1 else (0, columns)
        shape = self.shape(beside_name(name, "scale"))
        known = self._scales.setdefault(name, torch.full(shape, -1.0))
        numbers = 0
        for row, band in self._bands(name, first, end):
            scale = known[row : row + len(band)] = scales_of(band, storage)
            own = band[:, left:right]
            finite = bool(scale.isfinite().all())
            numbers += 0 if finite else count_not_finite(own)
            own.div_(_by_column(scale, storage, columns)[:, left:right])
            if not finite:
                own.nan_to_num_(nan=0.0)
            _, least, most = RANGES[storage.bits]
            target[row - first :][: len(band)].copy_(own.round_().clamp_(least, most))
        return numbers

    def _take_scales(self, name: str, first: int, end: int) -> Tensor:
        known = self._scales.pop(name, None)
        if known is not None and not (known[first:end] == -1).any():
            return known[first:end]
        return torch.cat([scales_of(band, self._storages[name]) for _, band in self._bands(name, first, end)])

    def _bands(self, name: str, first: int, end: int) -> Iterator[tuple[int, Tensor]]:
        """Whole rows from `first` to `end` as float32, in the same memory one after the other: (first row, rows)."""
        width = prod(self.source.shape(name)[1:])
        height = max(1, BAND // width)
        memory = torch.empty(min(height, end - first), width)
        for row in range(first, end, height):
            band = memory[: min(height, end - row)]
            self.source.read_into(name, 0, row, row + len(band), band)
            yield row, band


def scales_of(rows_OI: Tensor, storage: Storage) -> Tensor:
    """The scales of rows -> float32 [O], or [O, ceil(I / group)]."""
    grouped = rows_OI
    if storage.group is not None:
        rest = -rows_OI.shape[1] % storage.group
        grouped = F.pad(rows_OI, (0, rest)).unflatten(1, (-1, storage.group))
    scale = torch.maximum(grouped.amax(-1), -grouped.amin(-1)) / RANGES[storage.bits].divisor
    return torch.where(scale == 0, 1.0, scale)


def _by_column(scale: Tensor, storage: Storage, columns: int) -> Tensor:
    """The scales that a band's columns are divided by, to be broadcast over columns where whole rows share one."""
    if storage.group is None:
        return scale.unsqueeze(1).expand(-1, columns)
    return scale.repeat_interleave(storage.group, 1)[:, :columns]
