"""The biases in ModelSlim's files that change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atb_models.models.quantized.modelslim.tensors import Tensors

if TYPE_CHECKING:
    from atb_models.models.weights.checkpoint import Checkpoint


def zero_biases(checkpoint: Checkpoint, tensors: Tensors) -> frozenset[str]:
    """The names of the biases of floats whose values are all zero. Only biases are read."""
    biases = (name for name in tensors.names if name.endswith(".bias") and tensors.is_float(name))
    return frozenset(name for name in biases if not checkpoint.read(name).count_nonzero())
