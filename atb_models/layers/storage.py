"""How the weights of linear maps are stored in fewer bits, and the methods by the names that users give them.

Nothing here needs torch: command lines know the names without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Activations = Literal["float", "token", "static"]


@dataclass(frozen=True)
class Storage:
    """Of one linear map's weight [O, I]: integers q with scales, w = q * scale, or (q - offset) * scale.

    bits: 8 or 4, of a signed integer. group: inputs that share a scale and an offset; None: a whole row does.
    activations: what meets the weight. "float": as they are. "token": int8, with a scale for each row that is made when
    the row is there, its largest magnitude / 127. "static": int8, by a scale and an offset of the checkpoint.
    """

    bits: Literal[8, 4]
    group: int | None = None
    offset: bool = False
    activations: Activations = "float"


# What weights are made while floats are loaded, by rounding to the nearest.
METHODS: Final = {
    "w8a16": Storage(8),
    "w4a16": Storage(4, group=128),
    "w8a8_dynamic": Storage(8, activations="token"),
}


@dataclass(frozen=True)
class Quantization:
    """How a model stores the weights of its linear maps.

    name: one of METHODS, or the word of a checkpoint's own scheme. every: of all linear maps; None: only of those in
    `storages`, which are named by parameter of the decoder. biases: parameter -> the roles of its parts that have a
    bias which the model's configuration does not tell of; for a norm's weight "".
    """

    name: str
    every: Storage | None = None
    storages: Mapping[str, Storage] = field(default_factory=dict)
    biases: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def storage(self, parameter: str) -> Storage | None:
        """Of a linear map's weight; None: floats."""
        return self.storages.get(parameter, self.every)

    @property
    def has_integers(self) -> bool:
        """Whether any weight is stored in fewer bits."""
        return self.every is not None or bool(self.storages)
