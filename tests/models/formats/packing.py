"""Quantised weights packed by the rules of their formats, in numpy and apart from the readers.

Each function takes a weight [O, I] and gives the tensors that stand for it, by the ends of their names, and the float32
weight that they stand for: (integer - zero point) * scale.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Packed = tuple[dict[str, Tensor], Tensor]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds column AWQ_ORDER[i]


def words(values: Array, bits: int, order: tuple[int, ...] | None = None) -> Array:
    """Unsigned [R, C] -> int32 [R, ceil(C * bits / 32)], the first of a word in its lowest bits."""
    many = 32 // bits
    padded = np.pad(values.astype(np.uint64), ((0, 0), (0, -values.shape[1] % many)))
    runs = padded.reshape(len(values), -1, many)
    if order is not None:
        runs = runs[:, :, list(order)]
    shifts = np.arange(many, dtype=np.uint64) * np.uint64(bits)
    return (runs << shifts).sum(axis=2).astype(np.uint32).view(np.int32)


def rounded(weight: Array, bits: int, group_of: Array, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Unsigned integers [O, I], zero points [O, G] and fp16 scales [O, G] for the inputs' groups [I]."""
    groups, top = group_of.max() + 1, (1 << bits) - 1
    zeros, scales = np.empty((len(weight), groups)), np.empty((len(weight), groups), dtype=np.float16)
    for group in range(groups):
        own = weight[:, group_of == group]
        if symmetric:
            scales[:, group] = np.abs(own).max(axis=1) * 2 / top
            zeros[:, group] = (top + 1) // 2
        else:
            low, high = np.minimum(own.min(axis=1), 0), np.maximum(own.max(axis=1), 0)
            scales[:, group] = (high - low) / top
            zeros[:, group] = np.rint(-low / scales[:, group])
    scales[scales == 0] = 1
    of_inputs = scales.astype(np.float32)[:, group_of]
    integers = np.rint(weight / of_inputs) + zeros[:, group_of]
    return integers.clip(0, top).astype(np.int64), zeros.clip(0, top).astype(np.int64), scales


def dequantized(integers: Array, zeros: Array, scales: Array, group_of: Array) -> Tensor:
    """float32, each step rounded once."""
    whole = (integers - zeros[:, group_of]).astype(np.float32)
    return torch.from_numpy(whole * scales.astype(np.float32)[:, group_of])


def runs(inputs: int, group: int) -> Array:
    """The group of each input; -1: one group."""
    return np.arange(inputs) // (inputs if group == -1 else group)


def gptq(
    weight: Tensor,
    bits: int = 4,
    group: int = 128,
    *,
    symmetric: bool = True,
    version: int = 1,
    order: Array | None = None,
) -> Packed:
    """order: the group of each input, where that is no run of `group` of them."""
    group_of = runs(weight.shape[1], group) if order is None else order
    integers, zeros, scales = rounded(weight.float().numpy(), bits, group_of, symmetric=symmetric)
    stored = (zeros - 1) % (1 << bits) if version == 1 else zeros
    tensors = {
        "qweight": words(integers, bits).T,
        "qzeros": words(stored.T, bits),
        "scales": scales.T,
        "g_idx": group_of.astype(np.int32),
    }
    return as_tensors(tensors), dequantized(integers, zeros, scales, group_of)


def awq(weight: Tensor, group: int = 128) -> Packed:
    group_of = runs(weight.shape[1], group)
    integers, zeros, scales = rounded(weight.float().numpy(), 4, group_of, symmetric=False)
    tensors = {
        "qweight": words(integers.T, 4, AWQ_ORDER),
        "qzeros": words(zeros.T, 4, AWQ_ORDER),
        "scales": scales.T,
    }
    return as_tensors(tensors), dequantized(integers, zeros, scales, group_of)


def as_tensors(arrays: dict[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def compressed(
    weight: Tensor,
    bits: int,
    group: int = -1,
    *,
    packed: bool,
    symmetric: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    order: Array | None = None,
) -> Packed:
    """Of compressed-tensors. group: 0: one scale for the whole weight, -1: one for each output. dtype: of scales."""
    group_of = runs(weight.shape[1], group or -1) if order is None else order
    integers, zeros, scales = rounded(weight.float().numpy(), bits, group_of, symmetric=symmetric)
    half = 1 << (bits - 1)
    if group == 0:
        zeros[:], scales[:] = zeros[0, 0], scales[0, 0]
    stored = torch.from_numpy(scales.astype(np.float32)).to(dtype)
    floats = dequantized(integers, zeros, stored.float().numpy(), group_of)
    tensors = as_tensors({"weight": (integers - half).astype(np.int8)})
    if packed:
        tensors = as_tensors({"weight_packed": words(integers, bits), "weight_shape": np.array(weight.shape)})
    tensors["weight_scale"] = stored[0] if group == 0 else stored
    if not symmetric and packed:
        tensors |= as_tensors({"weight_zero_point": words(zeros.T, bits).T})
    elif not symmetric:
        tensors |= as_tensors({"weight_zero_point": (zeros - half).astype(np.int8)})
    if order is not None:
        tensors["weight_g_idx"] = torch.from_numpy(order.astype(np.int32))
    return tensors, floats


def float8(weight: Tensor, block: tuple[int, int], scale: str = "weight_scale_inv") -> Packed:
    """block: outputs and inputs that share a scale, 0: all of them; the largest of them becomes 448."""
    height, width = block[0] or len(weight), block[1] or weight.shape[1]
    numbers = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    floats = torch.empty(weight.shape)
    scales = torch.empty(-(-len(weight) // height), -(-weight.shape[1] // width))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            own = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            scales[i, j] = weight[own].float().abs().max() / 448
            numbers[own] = (weight[own].float() / scales[i, j]).to(torch.float8_e4m3fn)
            floats[own] = numbers[own].float() * scales[i, j]
    return {"weight": numbers, scale: scales}, floats
