"""Where loaded values go: straight to their place, or through plain rows that are packed once they are whole."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from atb_models.layers.parameter import Filling, Part
from atb_models.models.weights.names import CheckpointTensor
from atb_models.ops.weight import WHOLE, Layout

# Elements of a matrix that are packed at a time, where it has more: about those of an expert.
BAND = 1 << 22


class Matched(NamedTuple):
    """A tensor of a checkpoint, and where this rank's range of it goes."""

    tensor: CheckpointTensor
    filling: Filling
    part: Part


class Slice(NamedTuple):
    """[start, stop) along `dim` of a tensor (all of it where dim is None), and what it is written to."""

    dim: int | None
    start: int
    stop: int
    target: Tensor


class Packer:
    """Holds plain rows of at most one matrix, as long as the parts of a matrix follow one another."""

    def __init__(self, matched: Iterable[Matched]) -> None:
        self._parts: dict[tuple[int, int | None], list[Part]] = {}
        for _, filling, part in matched:
            self._parts.setdefault((id(filling), part.unit), []).append(part)
        self._left = Counter({key: len(parts) for key, parts in self._parts.items()})
        self._matrix: Tensor | None = None
        self._plain = torch.empty(0, dtype=torch.uint8)

    def pieces(self, filling: Filling, part: Part) -> Iterator[Slice]:
        """What to read of the part; each piece is written before the next one is asked for."""
        layout, key = filling.weight.layout, (id(filling), part.unit)
        if layout.packing is None:
            yield Slice(part.dim, part.start, part.stop, part.within(filling.matrix(part.unit)))
        elif _in_bands(layout, self._parts[key]):
            below = [other.first for other in self._parts[key] if other.first > part.first]
            rows = _matrix_shape(layout, part.unit)[0]
            yield from self._bands(filling, part, min(below, default=rows) - part.first)
        else:
            if self._matrix is None:
                self._matrix = self._rows(filling, _matrix_shape(layout, part.unit))
            yield Slice(part.dim, part.start, part.stop, part.within(self._matrix))
            self._left[key] -= 1
            if not self._left[key]:
                layout.packing.pack(self._matrix, filling.weight, part.unit)
                self._matrix = None

    def _bands(self, filling: Filling, part: Part, rows: int) -> Iterator[Slice]:
        """`rows` rows of the matrix, the part's and the padding below them, band by band."""
        layout = filling.weight.layout
        assert layout.packing is not None
        start, stop = (0, part.shape[0]) if part.dim is None else (part.start, part.stop)
        height, width = _band_rows(layout), layout.shape[-1]
        for first in range(0, rows, height):
            band = self._rows(filling, (min(height, rows - first), width))
            begin, end = min(start + first, stop), min(start + first + len(band), stop)
            if end > begin:
                yield Slice(0, begin, end, band[: end - begin])
            layout.packing.pack(band, filling.weight, part.unit, part.first + first)

    def _rows(self, filling: Filling, shape: tuple[int, ...]) -> Tensor:
        """Plain rows of zeros: what no part covers is padding. Their memory is that of all matrices, one after the
        other: new memory costs more time than what is written to it."""
        layout, device = filling.weight.layout, filling.weight.data.device
        size = math.prod(shape) * layout.loaded.itemsize
        if self._plain.nbytes < size or self._plain.device != device:
            self._plain = torch.empty(0, dtype=torch.uint8)  # before the new one is made
            self._plain = torch.empty(size, dtype=torch.uint8, device=device)
        return self._plain[:size].view(layout.loaded).view(shape).zero_()


def packing_bytes(filling: Filling) -> int:
    """Memory at most beside a weight while it is packed: plain rows of a matrix, all of them unless it is a large one
    that can be packed in bands."""
    layout = filling.weight.layout
    if layout.packing is None:
        return 0
    unit = next(iter(filling.parts.values())).unit
    parts = [part for part in filling.parts.values() if part.unit == unit]
    rows, width = layout.shape[-2:]
    if _in_bands(layout, parts):
        rows = _band_rows(layout)
    return rows * width * layout.loaded.itemsize


def _matrix_shape(layout: Layout, unit: int | None) -> tuple[int, ...]:
    """Of one of a stack, or of a tensor that is none: rows, and what is in a row."""
    return layout.shape if unit is None else layout.shape[1:]


def _band_rows(layout: Layout) -> int:
    assert layout.packing is not None
    step = layout.packing.rows
    return max(step, BAND // layout.shape[-1] // step * step)


def _in_bands(layout: Layout, parts: list[Part]) -> bool:
    """Whether a matrix is too large to be held plain, and its parts are rows that can be packed by themselves."""
    assert layout.packing is not None
    if layout.packing.rows == WHOLE:
        return False
    rows, width = layout.shape[-2:]
    if rows * width <= BAND or layout.packing.rows > rows:
        return False
    whole = all(part.dim in (0, None) and part.sizes[1:] == (width,) for part in parts)
    return whole and all(part.first % layout.packing.rows == 0 for part in parts)
