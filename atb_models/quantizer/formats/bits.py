"""Small integers in larger ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nibbles(low: Tensor, high: Tensor) -> Tensor:
    """Two int8 tensors of values -8 .. 7 in one: `low` in the bits 0 to 3 of each byte, `high` in 4 to 7."""
    return torch.bitwise_or(torch.bitwise_left_shift(high, 4), torch.bitwise_and(low, 15))


def words(integers_OI: Tensor, bits: int) -> Tensor:
    """int8 [O, I] of `bits` bits, signed -> int32 [O, ceil(I bits / 32)].

    Value i of a word is in its bits from i * bits on, stored as value + 2^(bits - 1); missing ones are stored as 0.
    """
    per_word = 32 // bits
    outputs, inputs = integers_OI.shape
    unsigned = integers_OI.to(torch.int32) + (1 << (bits - 1))
    padded = F.pad(unsigned, (0, -inputs % per_word)).view(outputs, -1, per_word)
    packed = torch.zeros(padded.shape[:2], dtype=torch.int32)
    for place in range(per_word):
        packed |= torch.bitwise_left_shift(padded[:, :, place], place * bits)
    return packed
