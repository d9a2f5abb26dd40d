"""How the weights of linear maps are stored in fewer bits: the methods by the names that users give them.

torch is imported only when a weight is made: command lines know the names without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atb_models.ops.weight import Layout


@dataclass(frozen=True)
class Quantization:
    """Weights as int8 with one float32 scale for each output feature, activations as floats."""

    name: str

    def layout(self, plain: Layout) -> Layout:
        """How a weight is stored that would lie like `plain` as floats."""
        import torch

        return replace(plain, dtype=torch.int8, loaded=torch.int8, scales=plain.shape[:-1])


W8A16 = Quantization("w8a16")
METHODS = {method.name: method for method in (W8A16,)}


def quantization(name: str | None) -> Quantization | None:
    """The method of that name, one of the keys of METHODS; None: weights stay floats."""
    return None if name is None else METHODS[name]
