"""What this machine can do at most, by the library's own loops (csrc/limits.cpp)."""

from __future__ import annotations

from ctypes import byref, c_int32
from typing import Any, NamedTuple

from torch import Tensor

from atb_models.ops.native.library import Library, threads

WINDOWS = 150  # of a millisecond, for each limit


class Rate(NamedTuple):
    """Bytes or operations per second of `threads` threads, of which `together` were seen at the same time.

    Where other processes kept some of them waiting all the time, operations of those count as much as of the ones that
    were seen, bytes do not: such a rate of reads is too low, as the memory can give more than those threads ask for.
    together 0: none ran without a pause, and the rate is that of all the time.
    """

    value: float
    threads: int
    together: int


def read_rate(library: Library, block: Tensor, wanted: int, windows: int = WINDOWS) -> Rate:
    """Bytes per second that `wanted` threads read from `block`, which must be larger than the caches."""
    return _measured(library.limit_read, block.data_ptr(), block.nbytes, windows=windows, wanted=wanted)


def float_rate(library: Library, wanted: int, windows: int = WINDOWS) -> Rate:
    """FLOP/s of float32 multiplications with additions, which count two."""
    return _measured(library.limit_floats, windows=windows, wanted=wanted)


def bf16_rate(library: Library, wanted: int, windows: int = WINDOWS) -> Rate:
    """FLOP/s of products of bfloat16 pairs; 0 where the level has no such instruction."""
    return _measured(library.limit_bf16, windows=windows, wanted=wanted)


def int8_rate(library: Library, wanted: int, windows: int = WINDOWS) -> Rate:
    """Operations per second of dot products of int8; 0 where the level has no such instruction."""
    return _measured(library.limit_int8, windows=windows, wanted=wanted)


def _measured(function: Any, *arguments: int, windows: int, wanted: int) -> Rate:
    together, used = c_int32(), threads(wanted)
    value = function(*arguments, windows, used, byref(together))
    return Rate(value, used, together.value)
