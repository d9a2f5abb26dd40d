"""A profile as JSON values, and the facts of the run that are needed to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from atb_models.models.dtypes import torch_dtype
from atb_models.ops.cost import Cost
from atb_models.plan.chips import PEAKS, Chip
from atb_models.plan.roofline import Arithmetic, Times, operation_times
from atb_models.profiler.profile import Profile, StepRecord, Total
from atb_models.profiler.table import TableRow, by_module, by_operation

KINDS = ("prefill", "mixed", "decode")


@dataclasses.dataclass(frozen=True)
class ProfiledRun:
    """What was profiled."""

    model: str
    dtype: str  # fp16, bf16 or fp32
    device: str
    rank: int
    ranks: int
    waits: bool  # each operation was waited for, on an asynchronous device
    chip: Chip | None  # the times are compared with its roofline
    no_chip: str | None = None  # why there is no chip
    quantize: str | None = None  # the method of the weights
    kv_dtype: str | None = None  # of the KV cache; None: `dtype`

    def price(self) -> Callable[[Cost, Arithmetic], Times] | None:
        """A function: the times of an operation at the roofline. None without a chip."""
        return None if self.chip is None else partial(operation_times, chip=self.chip, ranks=self.ranks)

    def figures(self) -> Iterator[tuple[str, float, str, str]]:
        """Label, value, unit and source of those chip figures that this run's roofline uses."""
        chip = self.chip
        if chip is None:
            return
        yield "memory", chip.bandwidth_gb_s, "GB/s", chip.sources["bandwidth_gb_s"]
        for dtype in dict.fromkeys((torch_dtype(self.dtype), torch.float32)):
            known = getattr(chip, PEAKS[dtype]) is not None
            unknown = "no figure: priced at the chip's fastest rate, an upper bound"
            source = chip.sources[PEAKS[dtype]] if known else unknown
            yield PEAKS[dtype].removesuffix("_tflops"), chip.peak(dtype) / 1e9, "GFLOP/s", source
        if self.ranks > 1:
            yield "to other ranks", chip.link_gb_s, "GB/s", chip.sources["link_gb_s"]
            yield "a collective", chip.latency_us, "us", chip.sources["latency_us"]


def to_json(profile: Profile, run: ProfiledRun) -> dict[str, Any]:
    """All but the single calls; times in seconds. calls: sums by kind of step, operation, module and backend."""
    chip = run.chip
    described = dataclasses.asdict(dataclasses.replace(run, chip=None))
    return described | {
        "chip": None if chip is None else dataclasses.asdict(chip),
        "wall_s": profile.wall_s,
        "split_s": profile.split(),
        "steps": [_step(step) for step in profile.steps],
        "traced_steps": profile.traced_steps,
        "operations": [_row(row) for row in by_operation(profile)],
        "modules": [_row(row) for row in by_module(profile)],
        "calls": [place._asdict() | _total(total) for place, total in profile.totals.items()],
    }


def _step(step: StepRecord) -> dict[str, Any]:
    times = {"start_s": step.start, "time_s": step.end - step.start}
    times |= {"operations_s": step.operations_ns, "recorder_s": step.recorder_ns}
    sizes = {"tokens": step.tokens, "sequences": step.sequences, "longest_kv": step.longest_kv}
    return {"kind": step.kind, **sizes, **{name: 1e-9 * ns for name, ns in times.items()}}


def _row(row: TableRow) -> dict[str, Any]:
    rates = {"flops_per_s": row.flops_per_s, "bytes_per_s": row.bytes_per_s, "roofline_share": row.roofline_share}
    return {"name": row.name, "backend": row.backend, **_total(row.total), **rates}


def _total(total: Total) -> dict[str, Any]:
    cost = total.cost
    return {
        "calls": total.calls,
        "time_s": total.seconds,
        "flops": cost.flops,
        "bytes_read": cost.read,
        "bytes_written": cost.written,
        "bytes_sent": cost.sent,
        "roofline_s": total.roofline_s,
        "roofline_s_by_limit": total.least_s,
        "lost_s": total.lost_s,
    }
