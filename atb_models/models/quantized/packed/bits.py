"""Integers of 4 and 8 bits that lie in words of 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def per_word(bits: int) -> int:
    """How many integers a word holds."""
    return WORD // bits


def unpack(words: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """The integers in int32 [..., C] -> int8 [..., C * 32 / bits], less half their range: 0 .. 15 become -8 .. 7.

    bits: 4 or 8. The lowest bits of a word come first; with `order`, element i of a word's run is the one that stands
    at place order[i].
    """
    flat = words.reshape(-1).contiguous().view(torch.uint8)  # little endian, as the files are
    octets = flat.view(*words.shape[:-1], words.shape[-1] * words.itemsize)
    if bits == 8:
        values = octets ^ 0x80
    else:
        values = torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2) - 8
    signed = values.view(torch.int8)
    if order is None:
        return signed
    return signed.unflatten(-1, (words.shape[-1], len(order)))[..., list(order)].flatten(-2)
