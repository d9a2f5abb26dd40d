"""This machine's processor as a chip: memory bandwidth and peak rates, measured in less than a second.

Where the CPU library serves, by its own loops: these are the machine's limits at the level of the library. Where torch
serves, by torch's products, which may stay far below what the machine could do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from atb_models.machine.memory import last_level_cache
from atb_models.ops.native import limits
from atb_models.ops.native.library import Library, active, load
from atb_models.plan.chips import PEAKS, RATES, THIS_CPU, Chip
from atb_models.plan.torch_rates import MATRIX_BYTES, measure_torch
from atb_models.wording import counted

# Bytes of the block that is read, and no less than twice a last-level cache: quick to read, and not from there.
BLOCK_BYTES, LEAST_BLOCK_BYTES = 192 << 20, 64 << 20
BLOCK_STEP = 8 << 20  # its pieces are whole rows of a matrix
THREAD_BYTES = 8 << 20  # of address space for the stack of each further thread


@dataclass(frozen=True)
class _Limits:
    """Bytes per second, operations per second by data type, and of each how it was measured."""

    read: float
    peaks: Mapping[torch.dtype, float | None]
    how_read: str
    how: Mapping[torch.dtype, str]


def measure_cpu(cores: int, room: int = 1 << 30) -> Chip:
    """What `cores` threads of this processor can do at most, as a chip that all ranks share.

    Raises MemoryError if `room`, the bytes that may be used for this, is too little or not available.

    The figures must be upper bounds of what an engine reaches here, so each is the best of many short runs. Where other
    programs keep some threads waiting all the time, the bandwidth may be less than that, and its source says so.
    """
    level = active().level
    used = THREAD_BYTES * (cores - 1) + (MATRIX_BYTES if level is None else 0)
    wanted = max(BLOCK_BYTES, 2 * last_level_cache())
    block_bytes = min(wanted, room - used) // BLOCK_STEP * BLOCK_STEP
    if block_bytes < LEAST_BLOCK_BYTES:
        raise MemoryError(f"{room} bytes are too few to measure this CPU")
    try:
        found = _by_torch(cores, block_bytes) if level is None else _by_library(load(level.name), cores, block_bytes)
    except RuntimeError as error:  # what torch raises for a failed allocation
        raise MemoryError(str(error)) from error
    rates = {name: peak and peak / 1e12 for dtype, name in RATES.items() for peak in (found.peaks[dtype],)}
    return Chip(
        name=THIS_CPU,
        device=f"{cores} cores and their memory, shared by all ranks",
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30),
        bandwidth_gb_s=found.read / 1e9,
        **rates,
        link_gb_s=found.read / 1e9,
        latency_us=0.0,
        sources={
            "memory_gb": "the operating system: all of the machine's memory",
            "bandwidth_gb_s": found.how_read,
            **{name: found.how[dtype] for dtype, name in RATES.items()},
            "link_gb_s": "taken as the memory's: ranks exchange through shared memory",
            "latency_us": "none: not measured, taken as 0",
        },
        shared=True,
        int8_weights_in=None,  # as the library and torch compute: int8 weights take the form of the activations
        device_type="cpu",
    )


def _by_library(library: Library, cores: int, block_bytes: int) -> _Limits:
    """What the level lacks an instruction for is widened, and multiplied and added in float32."""
    block = torch.ones(block_bytes, dtype=torch.uint8)  # written, or all its pages would be one
    read = limits.read_rate(library, block, cores)
    del block
    floats = limits.float_rate(library, cores)
    dots = {torch.bfloat16: limits.bf16_rate(library, cores), torch.int8: limits.int8_rate(library, cores)}
    peaks, how = {}, {}
    name = f"the CPU library's {{}} ({library.level.name})"
    for dtype, what in (
        (torch.float16, "as fp32"),
        (torch.bfloat16, "pairs of bf16"),
        (torch.float32, "fp32 multiply-add"),
        (torch.int8, "int8 dot product"),
    ):
        dot = dots.get(dtype, floats)
        peaks[dtype] = max(dot.value, floats.value)
        if dtype == torch.float16 or not dot.value:
            how[dtype] = f"as fp32: {library.level.name} has no such products"
        else:
            how[dtype] = _measured(name.format(what), dot)
    how_read = _measured(f"{name.format('read loop')} over {block_bytes >> 20} MiB", read)
    return _Limits(read.value, peaks, how_read if read.together == read.threads else f"{how_read}; may be too low", how)


def _measured(loop: str, rate: limits.Rate) -> str:
    missing = "" if rate.together == rate.threads else f", {rate.together} at a time (busy machine)"
    return f"measured now: {loop}, {counted(rate.threads, 'thread')}{missing}"


def _by_torch(cores: int, block_bytes: int) -> _Limits:
    rates = measure_torch(cores, block_bytes)
    source = f"measured now: torch, no level of the CPU library serves; the best of several runs, {cores} threads"
    fastest = rates.peaks[torch.float32]
    peaks: dict[torch.dtype, float | None] = {dtype: max(rates.peaks[dtype], fastest) for dtype in PEAKS}
    how = dict.fromkeys((torch.float16, torch.bfloat16), f"{source}; at least float32's, to which torch may widen")
    how |= {torch.float32: source, torch.int8: "none: not measured"}
    return _Limits(rates.bandwidth, peaks | {torch.int8: None}, f"{source}; {block_bytes >> 20} MiB", how)
