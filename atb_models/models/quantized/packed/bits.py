"""Integers of 4 and 8 bits that lie in words of 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32


def per_word(bits: int) -> int:
    """How many integers a word holds."""
    return WORD // bits


def unpack(words: Tensor, bits: int, *, interleaved: bool = False) -> Tensor:
    """The integers in int32 [..., C] -> int8 [..., C * 32 / bits], less half their range: 0 .. 15 become -8 .. 7.

    bits: 4 or 8. The lowest bits of a word come first. interleaved: its first half holds the even ones of its integers,
    its second half the odd ones.
    """
    octets = words.reshape(-1).contiguous().view(torch.uint8)  # little endian, as the files are
    if bits == 8:
        signed = (octets ^ 0x80).view(torch.int8)
    else:  # both halves of each byte spread to two bytes, all at once
        pairs = octets.to(torch.int16)
        pairs = (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F)
        signed = pairs.view(torch.int8).sub_(8)
    many = per_word(bits)
    if interleaved:
        signed = signed.view(-1, 2, many // 2).transpose(1, 2)
    return signed.reshape(*words.shape[:-1], words.shape[-1] * many)
