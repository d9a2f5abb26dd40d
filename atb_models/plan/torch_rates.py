"""What torch does on this processor at most, for machines that no level of the CPU library serves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from atb_models.plan.chips import PEAKS

MATRIX_BYTES = 64 << 20  # the operands of the largest product, and its result
PIECES = 8
WIDTH = 4096  # columns of the block as a matrix
# n of the products [n, n] x [n, n], in rising order.
WIDTHS = (512, 1024, 2048)
BANDWIDTH_SECONDS, PEAK_SECONDS = 0.15, 0.1
# This many threads get this many times the memory traffic of one; more may hinder each other.
MEMORY_THREADS = 2
SLOW_SECONDS = 0.1  # products that would take longer are not tried


class TorchRates(NamedTuple):
    """Bytes per second, and FLOP/s of matrix products by data type."""

    bandwidth: float
    peaks: dict[torch.dtype, float]


def measure_torch(cores: int, block_bytes: int) -> TorchRates:
    """The best that `cores` threads of torch did just now; a block of so many bytes is read. May raise RuntimeError.

    One thread alone, times the number of threads, counts too: on a busy machine all together wait for the slowest.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, single = _bandwidth(block_bytes), {dtype: _peak(dtype) for dtype in PEAKS}
        torch.set_num_threads(cores)
        bandwidth = max(_bandwidth(block_bytes), min(cores, MEMORY_THREADS) * alone)
        return TorchRates(bandwidth, {dtype: max(_peak(dtype), cores * single[dtype]) for dtype in PEAKS})
    finally:
        torch.set_num_threads(threads)


def _bandwidth(block_bytes: int) -> float:
    """Bytes per second, with the whole block and with its pieces, which have left the caches when they are read again.

    A piece takes so little time that some of its runs are not interrupted even on a busy machine.
    """
    block, best = torch.ones(block_bytes // 4), 0.0
    end = perf_counter() + BANDWIDTH_SECONDS
    while perf_counter() < end or not best:
        for way, pieces in product(WAYS, ([block], block.chunk(PIECES))):
            best = max(best, *(piece.nbytes / _seconds(partial(way, piece)) for piece in pieces))
    return best


def _copy(piece: Tensor) -> None:
    half = piece.numel() // 2
    piece[:half].copy_(piece[half:])


def _multiply(piece: Tensor) -> None:
    """A 16-bit row times the piece as a weight, as in a decode step."""
    torch.mm(torch.zeros(1, WIDTH, dtype=torch.float16), piece.view(torch.float16).view(-1, WIDTH).t())


WAYS: tuple[Callable[[Tensor], object], ...] = (torch.sum, _copy, _multiply)


def _peak(dtype: torch.dtype) -> float:
    """FLOP/s of matrix products."""
    best = 0.0
    for width in WIDTHS:
        if best and 2 * width**3 / best > SLOW_SECONDS:
            break
        a, b = (torch.full((width, width), 0.5, dtype=dtype) for _ in range(2))
        seconds = _best(partial(torch.mm, a, b.t()), PEAK_SECONDS / len(WIDTHS))
        best = max(best, 2 * width**3 / seconds)
    return best


def _best(work: Callable[[], object], seconds: float) -> float:
    """The shortest run within about `seconds`, of at least two: the first prepares what the others use."""
    best, end = min(_seconds(work), _seconds(work)), perf_counter() + seconds
    while perf_counter() < end:
        best = min(best, _seconds(work))
    return best


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start
