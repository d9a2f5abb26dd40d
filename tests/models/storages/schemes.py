"""A scheme of quantised weights by hand, and a source of the tensors of a dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from atb_models.layers.storage import Storage
from atb_models.models.weights.checkpoint import Checkpoint
from atb_models.models.weights.source import WeightSource


class Tensors:
    """A source of weights in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> set[str]:
        return set(self._tensors)

    def spare(self) -> frozenset[str]:
        return frozenset()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def where(self, name: str) -> str:
        return "memory"

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        tensor = self._tensors[name]
        target.copy_(tensor if dim is None else tensor.narrow(dim, start, stop - start))
        return 0

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True)
class HandMade:
    """Storages and biases by the ends of names; the tensors of `tensors`."""

    storages: Mapping[str, Storage]
    biases: tuple[str, ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "by hand, 8 bits"
    method: str = "w8a8"

    def storage(self, weight: str) -> Storage | None:
        return next((storage for end, storage in self.storages.items() if weight.endswith(end)), None)

    def has_bias(self, weight: str) -> bool:
        return weight.endswith(self.biases)

    def open(self, checkpoint: Checkpoint) -> WeightSource:
        return Tensors(self.tensors)
