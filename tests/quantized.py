"""Rounding to the nearest once more, in numpy: integers and scales of a checkpoint's linear maps, and their floats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
GROUP = 128  # of w4a16
MIXTRAL = (".w1.weight", ".w2.weight", ".w3.weight")  # gate, down and up of its experts


def integers_and_scales(weight_OI: Tensor, quantize: str = "w8a16") -> tuple[Array, Array]:
    """The integers in int8 [O, I], quotients to the nearest, halves to even, and float32 scales.

    w8a16, w8a8_dynamic: [O], the largest magnitude of a row / 127. w4a16: [O, ceil(I / 128)], that of a group / 7.5.
    """
    rows = weight_OI.float().numpy()
    if quantize != "w4a16":
        scales = _scales(np.abs(rows).max(axis=1), 127)
        return np.rint(rows / scales[:, None]).clip(-127, 127).astype(np.int8), scales
    starts = range(0, rows.shape[1], GROUP)
    scales = np.stack([_scales(np.abs(rows[:, i : i + GROUP]).max(axis=1), 7.5) for i in starts], axis=1)
    return np.rint(rows / by_input(scales, rows.shape[1])).clip(-8, 7).astype(np.int8), scales


def _scales(largest: Array, divisor: float) -> Array:
    scales: Array = largest / np.float32(divisor)
    scales[scales == 0] = 1
    return scales


def by_input(scales: Array, inputs: int) -> Array:
    """The scale of each number: [O] or [O, groups] -> [O, 1] or [O, I]."""
    return scales[:, None] if scales.ndim == 1 else scales.repeat(GROUP, axis=1)[:, :inputs]


def is_quantized(name: str) -> bool:
    """Whether a method is for this tensor of a checkpoint: q, k, v, o, gate, up and down, of all experts too; of latent
    attention all maps but that from latents to keys and values."""
    return name.endswith(("_proj.weight", "_proj_with_mqa.weight", *MIXTRAL)) and "kv_b_proj" not in name


def dequantized(tensors: dict[str, Tensor], quantize: str = "w8a16") -> dict[str, Tensor]:
    """A checkpoint with the float32 weights that its quantised ones stand for."""
    return {
        name: _dequantized(tensor, quantize) if is_quantized(name) else tensor for name, tensor in tensors.items()
    }


def _dequantized(weight_OI: Tensor, quantize: str) -> Tensor:
    integers, scales = integers_and_scales(weight_OI, quantize)
    return torch.from_numpy(integers * by_input(scales, integers.shape[1]))
