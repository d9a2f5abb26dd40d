"""What weights are read from, whatever it is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class WeightSource(Protocol):
    """Named tensors of which slices are read."""

    def names(self) -> set[str]:
        """The names of all tensors."""

    def spare(self) -> frozenset[str]:
        """Those that change nothing, so that a model need not have a place for them: biases of zeros."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's whole shape."""

    def where(self, name: str) -> str:
        """For error messages: the file that holds the tensor, or what there is in its place."""

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """Fill `target` (any device and dtype) with [start, stop) along `dim` of the tensor; dim None: all of it.

        Returns how many numbers of the slice are infinite or no numbers, be it only in the target's dtype.
        """

    def close(self) -> None:
        """Let go of files."""


class SeenSource:
    """A source seen in another way: what a subclass does not change is as in `source`."""

    def __init__(self, source: WeightSource) -> None:
        self.source = source

    def names(self) -> set[str]:
        return self.source.names()

    def spare(self) -> frozenset[str]:
        return self.source.spare()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def where(self, name: str) -> str:
        return self.source.where(name)

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        return self.source.read_into(name, dim, start, stop, target)

    def close(self) -> None:
        self.source.close()
