"""This machine's processor as a chip: memory bandwidth and peak FLOP/s, measured in about two seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import product
from time import perf_counter

import torch
from torch import Tensor

from atb_models.plan.chips import PEAKS, THIS_CPU, Chip

NAME = THIS_CPU
# Bytes of the block: far more than most last-level caches, and still quick to read.
BLOCK_BYTES, LEAST_BLOCK_BYTES = 192 << 20, 64 << 20
BLOCK_STEP = 8 << 20  # its pieces are whole rows of a matrix
MATRIX_BYTES = 64 << 20  # the operands of the largest product, and its result
PIECES = 8
WIDTH = 4096  # columns of the block as a matrix
# n of the products [n, n] x [n, n], in rising order.
WIDTHS = (512, 1024, 2048)
BANDWIDTH_SECONDS, PEAK_SECONDS = 0.3, 0.2
# This many threads get this many times the memory traffic of one; more may hinder each other.
MEMORY_THREADS = 2
SLOW_SECONDS = 0.1  # products that would take longer are not tried


def measure_cpu(cores: int, room: int = BLOCK_BYTES + MATRIX_BYTES) -> Chip:
    """The best that `cores` cores of this processor did just now, as a chip that all ranks share.

    Raises MemoryError if `room`, the bytes that may be used for this, is too little or not available.

    The figures must be upper bounds of what an engine reaches here, so each is the best of several runs and methods.
    One thread alone, times the number of threads, counts too: on a busy machine all together wait for the slowest.
    """
    threads = torch.get_num_threads()
    block_bytes = min(BLOCK_BYTES, (room - MATRIX_BYTES) // BLOCK_STEP * BLOCK_STEP)
    if block_bytes < LEAST_BLOCK_BYTES:
        raise MemoryError(f"{room} bytes are too few to measure this CPU")
    try:
        torch.set_num_threads(1)
        alone, single = _bandwidth(block_bytes), {dtype: _peak(dtype) for dtype in PEAKS}
        torch.set_num_threads(cores)
        bandwidth = max(_bandwidth(block_bytes), min(cores, MEMORY_THREADS) * alone)
        peaks = {dtype: max(_peak(dtype), cores * single[dtype]) for dtype in PEAKS}
    except RuntimeError as error:  # what torch raises for a failed allocation
        raise MemoryError(str(error)) from error
    finally:
        torch.set_num_threads(threads)
    source = "measured now, the best of several runs: "
    each = f"{source}{cores} threads, or one times {cores}"
    reading = f"{source}{cores} threads, or one times {min(cores, MEMORY_THREADS)}"
    values = {name: max(peaks[dtype], peaks[torch.float32]) / 1e12 for dtype, name in PEAKS.items()}
    return Chip(
        name=NAME,
        device=f"{cores} cores and their memory, shared by all ranks",
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30),
        bandwidth_gb_s=bandwidth / 1e9,
        **values,
        link_gb_s=bandwidth / 1e9,
        latency_us=0.0,
        sources={
            "memory_gb": "the operating system: all of the machine's memory",
            "bandwidth_gb_s": f"{reading}; {block_bytes >> 20} MiB read, copied or multiplied",
            "fp16_tflops": f"{each}; at least float32's, to which a backend may widen",
            "bf16_tflops": f"{each}; at least float32's, to which a backend may widen",
            "fp32_tflops": each,
            "link_gb_s": "taken as the memory's: ranks exchange through shared memory",
            "latency_us": "none: not measured, taken as 0",
        },
        shared=True,
    )


def _bandwidth(block_bytes: int) -> float:
    """Bytes per second, with the whole block and with its pieces, which have left the caches when they are read again.

    A piece takes so little time that some of its runs are not interrupted even on a busy machine.
    """
    block, best = torch.zeros(block_bytes // 4), 0.0
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
