"""Dummy weights in the place of a quantised checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atb_models.layers.storage import Storage
from atb_models.models.weights.dummy import DummyWeights
from atb_models.models.weights.names import beside_name
from atb_models.models.weights.seen.quantizing import RANGES
from atb_models.models.weights.source import SeenSource
from atb_models.ops.weight import Layout

# Of static activations: what norms give lies within +-4 mostly.
INPUT_SCALE = 4 / 127
# Standard deviations of the dummy floats that the largest integer stands for.
DEVIATIONS = 3


class DummyIntegers(SeenSource):
    """DummyWeights; those in `storages` are integers with one scale for all, so the same at every tp.

    Offsets and integer biases are 0.
    """

    def __init__(self, source: DummyWeights, storages: Mapping[str, Storage]) -> None:
        super().__init__(source)
        self._storages = storages
        self._deviation = source.deviation
        self._beside = {
            beside_name(name, kind): (name, kind) for name, storage in storages.items() for kind in _kinds(storage)
        }

    def names(self) -> set[str]:
        return self.source.names() | self._beside.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._beside:
            return self.source.shape(name)
        weight, kind = self._beside[name]
        (outputs, inputs), group = self.source.shape(weight), self._storages[weight].group
        if kind in ("input_scale", "input_offset"):
            return (1,)
        return (outputs,) if group is None or kind == "quant_bias" else (outputs, -(-inputs // group))

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        if name in self._beside:
            target.fill_(self._value(*self._beside[name]))
            return 0
        if name not in self._storages:
            return self.source.read_into(name, dim, start, stop, target)
        floats = torch.empty(target.shape)
        self.source.read_into(name, dim, start, stop, floats)
        _, least, most = RANGES[self._storages[name].bits]
        target.copy_(floats.div_(self._step(name)).round_().clamp_(least, most))
        return 0

    def _step(self, name: str) -> float:
        return DEVIATIONS * self._deviation / RANGES[self._storages[name].bits].divisor or 1.0

    def _value(self, weight: str, kind: str) -> float:
        if kind == "input_scale":
            return INPUT_SCALE
        if kind != "scale":
            return 0.0
        return self._step(weight) * (INPUT_SCALE if self._storages[weight].activations == "static" else 1.0)


def _kinds(storage: Storage) -> list[str]:
    """What lies beside a weight of that storage."""
    return list(Layout.integers((1, 1), offsets=storage.offset, activations=storage.activations).beside)
