"""Where loaded values go: straight to their place, or through a plain matrix that is packed once it is whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from atb_models.layers.parameter import Filling, Part
from atb_models.models.weights.names import CheckpointTensor


class Matched(NamedTuple):
    """A tensor of a checkpoint, and where this rank's range of it goes."""

    tensor: CheckpointTensor
    filling: Filling
    part: Part


class Packer:
    """Holds at most one plain matrix, as long as the parts of a matrix follow one another."""

    def __init__(self, matched: Iterable[Matched]) -> None:
        self._left = Counter((id(filling), part.unit) for _, filling, part in matched)
        self._matrix: Tensor | None = None

    def target(self, filling: Filling, part: Part) -> Tensor:
        """What the part's values are written to."""
        layout = filling.weight.layout
        if layout.packing is None:
            return part.within(filling.matrix(part.unit))
        if self._matrix is None:  # zeros: what no part covers is padding
            self._matrix = torch.zeros(layout.shape[-2:], dtype=layout.loaded, device=filling.weight.data.device)
        return part.within(self._matrix)

    def filled(self, filling: Filling, part: Part) -> None:
        """The part is written; pack its matrix if it was the last one."""
        key = id(filling), part.unit
        self._left[key] -= 1
        packing = filling.weight.layout.packing
        if packing is not None and not self._left[key]:
            assert self._matrix is not None
            packing.pack(self._matrix, filling.weight, part.unit)
            self._matrix = None
