"""Weights that are infinite or no number: found while they are read, at the cost of one look at each.

The look is at one bit, the highest of the exponent, which is set in numbers of 2 and more, in infinities and in what
is no number. Hardly any weight is that large; only a tensor that has one is counted, after it was read.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atb_models.wording import counted

Words = np.ndarray  # one-dimensional, uint16 or uint32

# What is read at a time, so that it is still in the second-level cache when it is looked at.
PIECE_BYTES: Final = 256 << 10
# Elements that are counted at a time, for the same reason.
_BAND: Final = 1 << 17

_WORDS: Final = {2: np.uint16, 4: np.uint32}  # by bytes of an element
_EXPONENTS: Final = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}


class NotFinite(NamedTuple):
    """How many numbers are not finite in what a rank has of a tensor, from `start` on in the dimension that is cut."""

    name: str
    start: int
    numbers: int


def is_looked_at(dtype: torch.dtype) -> bool:
    """Whether numbers of this type are looked at: floats are, of 16 and 32 bits. A scheme judges what it unpacks."""
    return dtype in _EXPONENTS


def words_of(run: Tensor) -> Words:
    """The bits of a contiguous 1-D CPU tensor, as unsigned integers of its elements' size; no copy."""
    return run.view(_signed(run)).numpy().view(_WORDS[run.element_size()])


def has_large(words: Words) -> bool:
    """Whether any of these numbers is 2 or more in magnitude, infinite or no number."""
    high = 1 << (8 * words.itemsize - 2)
    return bool(np.bitwise_or.reduce(words) & high)


def count_not_finite(values: Tensor) -> int:
    """Numbers of a tensor (any device, strides and float type) that are infinite or no numbers."""
    if values.device.type != "cpu":
        return int(values.numel() - torch.isfinite(values).sum())
    rows = values.detach().reshape(1, -1) if values.dim() < 2 else values.detach()
    exponent = _EXPONENTS[values.dtype]
    step = max(1, _BAND // max(1, prod(rows.shape[1:])))
    total = 0
    for band in rows.split(step):
        bits = band.view(_signed(band)).numpy()
        total += int(np.count_nonzero((bits & exponent) == exponent))
    return total


def summary(found: Iterable[NotFinite], most: int = 3) -> str:
    """As "17 numbers of 2 tensors ...: a (16), b (1)", of all ranks' findings; a part that several hold counts once."""
    counts: dict[str, int] = {}
    for name, _, count in {(one.name, one.start): one for one in found}.values():
        counts[name] = counts.get(name, 0) + count
    tensors = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:most])
    more = f" and {len(counts) - most} more" if len(counts) > most else ""
    return (
        f"{counted(sum(counts.values()), 'number')} of {counted(len(counts), 'tensor')} are infinite or no numbers:"
        f" {tensors}{more}"
    )


def _signed(x: Tensor) -> torch.dtype:
    """The integer type of the same size; numpy knows neither bfloat16 nor views of it."""
    return torch.int16 if x.element_size() == 2 else torch.int32
