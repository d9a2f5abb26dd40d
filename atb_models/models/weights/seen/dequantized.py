"""Quantised weights of a checkpoint that the model holds as floats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atb_models.layers.storage import Storage
from atb_models.models.weights.names import beside_name
from atb_models.models.weights.source import SeenSource, WeightSource

# Numbers that are made floats at a time; whole rows, and at least one.
BAND = 1 << 20


class Dequantized(SeenSource):
    """The tensors of `source`; those in `storages` are floats: (integers - offset) * scale in float32."""

    def __init__(self, source: WeightSource, storages: Mapping[str, Storage]) -> None:
        super().__init__(source)
        assert all(storage.activations != "static" for storage in storages.values())
        self._storages = storages

    def names(self) -> set[str]:
        kinds = ("scale", "offset")
        return self.source.names() - {beside_name(name, kind) for name in self._storages for kind in kinds}

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        if name not in self._storages:
            return self.source.read_into(name, dim, start, stop, target)
        rows, inputs = self.source.shape(name)
        first, end = (start, stop) if dim == 0 else (0, rows)
        left, right = (start, stop) if dim == 1 else (0, inputs)
        height, found = max(1, BAND // inputs), 0
        for row in range(first, end, height):
            below = min(row + height, end)
            values = torch.empty(below - row, inputs, dtype=torch.int8)
            self.source.read_into(name, 0, row, below, values)
            floats, numbers = self._floats(name, row, below, values)
            target[row - first : below - first].copy_(floats[:, left:right])
            found += numbers
        return found

    def _floats(self, name: str, first: int, end: int, values: Tensor) -> tuple[Tensor, int]:
        """Whole rows in float32, and how many of their scales are no numbers."""
        storage = self._storages[name]
        floats, found = values.float(), 0
        if storage.offset:
            offset, found = self._by_column(beside_name(name, "offset"), storage, first, end, values.shape[1])
            floats -= offset
        scale, more = self._by_column(beside_name(name, "scale"), storage, first, end, values.shape[1])
        return floats.mul_(scale), found + more

    def _by_column(self, name: str, storage: Storage, first: int, end: int, inputs: int) -> tuple[Tensor, int]:
        """Rows of scales, or of offsets, one for each column or one for all."""
        per_row = self.source.shape(name)[1:]
        values = torch.empty(end - first, *per_row)
        found = self.source.read_into(name, 0, first, end, values)
        if storage.group is None:
            return values.unsqueeze(1), found
        return values.repeat_interleave(storage.group, 1)[:, :inputs], found
