"""The least time that an operation takes on a chip: the roofline (Williams, Waterman and Patterson 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from atb_models.ops.cost import Cost
from atb_models.ops.table import TABLE
from atb_models.plan.chips import Chip


@dataclass(frozen=True)
class Times:
    """Seconds. `total` is less than the sum of the others, because an operation computes while it reads."""

    compute: float = 0.0
    memory: float = 0.0
    communication: float = 0.0
    total: float = 0.0

    @property
    def limit(self) -> str:
        """What binds a single operation: compute, memory or link."""
        if self.communication:
            return "link"
        return "compute" if self.compute > self.memory else "memory"

    def __add__(self, other: Times) -> Times:
        return Times(
            self.compute + other.compute,
            self.memory + other.memory,
            self.communication + other.communication,
            self.total + other.total,
        )

    def __mul__(self, times: float) -> Times:
        return Times(self.compute * times, self.memory * times, self.communication * times, self.total * times)


NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Arithmetic(NamedTuple):
    """What an operation multiplies: numbers of `dtype` with each other, or with weights stored as `weights`."""

    dtype: torch.dtype
    weights: torch.dtype


def operation_times(cost: Cost, arithmetic: Arithmetic, chip: Chip, ranks: int) -> Times:
    """The least times of one call on one of `ranks` ranks.

    A computation takes the longer of arithmetic and memory traffic, a collective its latency plus its sending. The sums
    and copies of a collective overlap with its sending and are not counted.
    """
    part = ranks if chip.shared else 1
    if cost.sent:
        seconds = chip.latency_us * 1e-6 + cost.sent * part / (chip.link_gb_s * 1e9)
        return Times(communication=seconds, total=seconds)
    compute = cost.flops * part / chip.peak(*arithmetic)
    memory = cost.moved * part / (chip.bandwidth_gb_s * 1e9)
    return Times(compute, memory, 0.0, max(compute, memory))


def arithmetic_of(op: str, dtypes: Mapping[str, torch.dtype], options: Mapping[str, Any] = NO_OPTIONS) -> Arithmetic:
    """The arithmetic of an operation of the table whose tensor arguments have these data types, by name.

    The widest floating type among what it multiplies; int8 where there is none but int8, else float32. options: its
    other arguments; "activations" says that a composite multiplies integers though its rows come as floats.
    """
    if options.get("activations") == "int8":
        return Arithmetic(torch.int8, torch.int8)
    named = TABLE[op].products
    found = [dtype for name, dtype in dtypes.items() if named is None or name in named]
    has_int8 = torch.int8 in found
    others = torch.int8 if has_int8 else torch.float32
    floating = [dtype for dtype in found if dtype.is_floating_point]
    dtype = max(floating, key=lambda dtype: dtype.itemsize, default=others)
    return Arithmetic(dtype, torch.int8 if has_int8 else dtype)
