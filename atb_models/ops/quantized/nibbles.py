"""Integers of 4 bits, two to a byte: the one with the even index in the low half, in two's complement."""

from __future__ import annotations

import torch
from torch import Tensor


def packed_width(inputs: int) -> int:
    """Bytes of a row of so many integers."""
    return (inputs + 1) // 2


def pack_nibbles(values_OI: Tensor, packed: Tensor) -> None:
    """Write int8 values from -8 to 7 to `packed`, uint8 [O, ceil(I / 2)]; a last half byte is 0."""
    low, high = values_OI[:, 0::2], values_OI[:, 1::2]
    signed = packed.view(torch.int8)
    signed.copy_(low & 15)
    signed[:, : high.shape[1]].bitwise_or_(high << 4)


def unpack_nibbles(packed: Tensor, inputs: int) -> Tensor:
    """The values of uint8 [..., ceil(I / 2)] -> int8 [..., I]."""
    signed = packed.view(torch.int8)
    pairs = torch.stack(((signed << 4) >> 4, signed >> 4), dim=-1)
    return pairs.flatten(-2)[..., :inputs]
