"""How the weight of a linear map is stored in fewer bits, and the methods by the names that users give them.

Nothing here needs torch: command lines know the names without it.
"""

from __future__ import annotations

from dataclasses import dataclass
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
