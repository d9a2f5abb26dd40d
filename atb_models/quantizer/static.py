"""Activations as int8 by a scale and an offset of the checkpoint: how both follow from the range of the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST, _MOST = -128, 127


class InputRange(NamedTuple):
    """The least and the largest input that a linear map was seen with."""

    low: float
    high: float


def scale_and_offset(seen: InputRange, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For x8 = clamp(round(x / scale + offset)), which maps low to -128, high to 127, and 0 to a whole number.

    -> float32 [1] each, with numbers of `dtype`, in which they are stored: what follows from them uses these.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    scale = torch.tensor([(high - low) / (_MOST - _LEAST)]).to(dtype).float()
    scale = torch.where(scale == 0, 1.0, scale)
    offset = (_LEAST - low / scale).round().clamp(_LEAST, _MOST)
    return scale, offset


def static_parts(
    weight: Tensor, weight_scale: Tensor, bias: Tensor | None, seen: InputRange, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """The internal form of a linear map with static activations, from its int8 weight [O, I] and scale [O].

    y = (x8 W^T + quant_bias) * scale: the scale is that of the input times that of the weight; quant_bias holds the
    float bias, and takes away what the offset has added to x8.
    """
    scale, offset = scale_and_offset(seen, dtype)
    of_sums = scale * weight_scale
    correction = offset.double() * weight.sum(1, dtype=torch.int64)
    floats = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double() / of_sums.double()
    quant_bias = (floats - correction).round().clamp(-(1 << 31), (1 << 31) - 1).to(torch.int32)
    return {
        "weight": weight,
        "weight_scale": of_sums,
        "input_scale": scale,
        "input_offset": offset,
        "quant_bias": quant_bias,
    }
