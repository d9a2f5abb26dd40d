"""The least time that an operation takes on a chip: the roofline (Williams, Waterman and Patterson 2009)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from atb_models.ops.cost import Cost
from atb_models.plan.chips import Chip


@dataclass(frozen=True)
class Times:
    """Seconds. `total` is less than the sum of the others, because an operation computes while it reads."""

    compute: float = 0.0
    memory: float = 0.0
    communication: float = 0.0
    total: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(
            self.compute + other.compute,
            self.memory + other.memory,
            self.communication + other.communication,
            self.total + other.total,
        )

    def __mul__(self, times: float) -> Times:
        return Times(self.compute * times, self.memory * times, self.communication * times, self.total * times)


def roofline_seconds(cost: Cost, dtype: torch.dtype, chip: Chip, ranks: int) -> float:
    """The least time of one call on one of `ranks` ranks. dtype: that of its arithmetic, see work_dtype."""
    return operation_times(cost, dtype, chip, ranks).total


def operation_times(cost: Cost, dtype: torch.dtype, chip: Chip, ranks: int) -> Times:
    """A computation takes the longer of arithmetic and memory traffic, a collective its latency plus its sending.

    The sums and copies of a collective overlap with its sending and are not counted.
    """
    part = ranks if chip.shared else 1
    if cost.sent:
        seconds = chip.latency_us * 1e-6 + cost.sent * part / (chip.link_gb_s * 1e9)
        return Times(communication=seconds, total=seconds)
    compute = cost.flops * part / chip.peak(dtype)
    memory = cost.moved * part / (chip.bandwidth_gb_s * 1e9)
    return Times(compute, memory, 0.0, max(compute, memory))


def work_dtype(inputs: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype in which an operation on inputs of these dtypes computes: the widest floating one, else float32."""
    floating = [dtype for dtype in inputs if dtype.is_floating_point]
    return max(floating, key=lambda dtype: dtype.itemsize, default=torch.float32)
