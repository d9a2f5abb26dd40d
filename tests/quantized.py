"""W8A16 once more, in numpy: int8 numbers and scales of a checkpoint's linear maps, and the floats they stand for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray


def integers_and_scales(weight_OI: Tensor) -> tuple[Array, Array]:
    """int8 [O, I] and float32 [O]: the largest magnitude of a row / 127, quotients to the nearest, halves to even."""
    rows = weight_OI.float().numpy()
    scales = np.abs(rows).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(rows / scales[:, None]).clip(-127, 127).astype(np.int8), scales


def is_quantized(name: str) -> bool:
    """Whether W8A16 is for this tensor of a checkpoint: q, k, v, o, gate, up and down, of shared and routed experts."""
    return name.endswith("_proj.weight")


def dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint with the float32 weights that its quantised ones stand for."""
    return {name: _dequantized(tensor) if is_quantized(name) else tensor for name, tensor in tensors.items()}


def _dequantized(weight_OI: Tensor) -> Tensor:
    integers, scales = integers_and_scales(weight_OI)
    return torch.from_numpy(integers * scales[:, None])
