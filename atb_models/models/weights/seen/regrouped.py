"""Scales of groups, presented for the inputs that a rank's weights have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from atb_models.models.weights.source import SeenSource, WeightSource


class Groups(NamedTuple):
    """Of one tensor of scales: inputs of its weight, and how many share a scale in the source and as presented."""

    inputs: int
    source: int | None  # None: all of them, and the tensor has one dimension
    unit: int


class Regrouped(SeenSource):
    """The tensors of `source`; those in `groups` have a scale for each unit, that of the group which the unit is in.

    No unit is cut by a group. The last group of a row, and its last unit, may be shorter than the others.
    """

    def __init__(self, source: WeightSource, groups: Mapping[str, Groups]) -> None:
        super().__init__(source)
        self._groups = groups

    def shape(self, name: str) -> tuple[int, ...]:
        theirs = self.source.shape(name)
        if name not in self._groups or not self._fits(name, theirs):
            return theirs
        inputs, _, unit = self._groups[name]
        return theirs[0], -(-inputs // unit)

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        if name not in self._groups:
            return self.source.read_into(name, dim, start, stop, target)
        rows, units = self.shape(name)
        first, last = (start, stop) if dim == 1 else (0, units)
        _, group, unit = self._groups[name]
        columns = torch.arange(first, last) * unit // (group or units * unit)
        if group is None:
            theirs = torch.empty(target.shape[0])
            found = self.source.read_into(name, 0 if dim == 0 else None, start, stop, theirs)
            target.copy_(theirs.unsqueeze(1).expand(target.shape))
            return found
        if dim == 0:
            theirs = torch.empty(stop - start, self.source.shape(name)[1])
            found = self.source.read_into(name, 0, start, stop, theirs)
        else:
            low, high = int(columns[0]), int(columns[-1]) + 1
            theirs = torch.empty(rows, high - low)
            found = self.source.read_into(name, 1, low, high, theirs)
            columns -= low
        target.copy_(theirs[:, columns])
        return found

    def _fits(self, name: str, theirs: tuple[int, ...]) -> bool:
        """Whether the source's tensor has a column for each of its groups; another shape is shown as it is."""
        inputs, group, _ = self._groups[name]
        return len(theirs) == 1 if group is None else len(theirs) == 2 and theirs[1] == -(-inputs // group)
