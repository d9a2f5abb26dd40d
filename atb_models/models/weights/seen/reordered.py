"""A source whose tensors have their rows in another order."""

from __future__ import annotations

import torch
from torch import Tensor

from atb_models.models.weights.source import SeenSource, WeightSource

# Elements of whole runs of rows that are reordered at a time; at least one run.
BAND = 1 << 22


class Reordered(SeenSource):
    """The tensors of `source`; in every run of len(order) rows, row i is the one that lies at order[i] of the run."""

    def __init__(self, source: WeightSource, order: tuple[int, ...]) -> None:
        super().__init__(source)
        assert sorted(order) == list(range(len(order))), f"{order} is no order of {len(order)} rows"
        self._order = torch.tensor(order)

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """As of any source, of rows: `dim` is 0 or None."""
        assert not dim, "rows are reordered whole"
        start, stop = (start, stop) if dim == 0 else (0, self.source.shape(name)[0])
        run = len(self._order)
        first, end = -(-start // run) * run, stop // run * run  # whole runs
        if first >= end:
            return self._single(name, start, stop, target)
        found = self._single(name, start, first, target[: first - start])
        found += self._runs(name, first, end, target[first - start : end - start])
        return found + self._single(name, end, stop, target[end - start :])

    def _single(self, name: str, start: int, stop: int, target: Tensor) -> int:
        """Row by row: what is left of runs whose other rows are not wanted."""
        found, run = 0, len(self._order)
        for row in range(start, stop):
            theirs = row // run * run + int(self._order[row % run])
            found += self.source.read_into(name, 0, theirs, theirs + 1, target[row - start : row - start + 1])
        return found

    def _runs(self, name: str, start: int, stop: int, target: Tensor) -> int:
        found, run = 0, len(self._order)
        height = run * max(1, BAND // (run * max(1, target[:1].numel())))
        for first in range(start, stop, height):
            end = min(first + height, stop)
            rows = torch.empty(end - first, *target.shape[1:], dtype=target.dtype)
            found += self.source.read_into(name, 0, first, end, rows)
            target[first - start : end - start].copy_(rows.unflatten(0, (-1, run))[:, self._order].flatten(0, 1))
        return found
