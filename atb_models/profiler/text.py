"""A profile as lines of text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from atb_models.profiler.profile import Profile, Total
from atb_models.profiler.report import KINDS, ProfiledRun
from atb_models.profiler.table import TableRow, by_module, by_operation, rest
from atb_models.wording import counted, precision

MODULES = 15  # rows of the modules' table
COLUMNS = ("calls", "time ms", "wall %", "GFLOP/s", "GB/s", "roofline %", "limit", "lost ms")
NOTHING = "-"
LEAST = 0.0001  # of a rate; a smaller one is shown as less than this


def lines(profile: Profile, run: ProfiledRun) -> Iterator[str]:
    """The header, a table of the operations, a table of the modules, and notes on the figures."""
    storage = precision(run.dtype, run.quantize, run.kv_dtype)
    yield f"profile of rank {run.rank} of {run.ranks}: {run.model}, {storage} on {run.device}"
    yield from _chip(run)
    yield from _steps(profile)
    yield from _split(profile)
    operations, modules = by_operation(profile), by_module(profile)
    shown, others = (modules[:MODULES], modules[MODULES:]) if len(modules) > MODULES + 1 else (modules, [])
    yield ""
    yield from _table("operation", operations, profile)
    yield ""
    yield from _table("module", [*shown, *([rest(others)] if others else [])], profile)
    yield ""
    yield from _notes(profile, run, [*operations, *modules])


def _chip(run: ProfiledRun) -> Iterator[str]:
    chip = run.chip
    if chip is None:
        yield f"  roofline   none: {run.no_chip}; choose a chip with --chip NAME"
        return
    yield f"  roofline   {chip.name}" + (f", shared by {run.ranks} ranks" if chip.shared and run.ranks > 1 else "")
    for label, value, unit, source in run.figures():
        yield f"    {label:<20}{_three_digits(value):>12} {unit:<8} {source}"


def _steps(profile: Profile) -> Iterator[str]:
    for kind in KINDS:
        steps = profile.of_kind(kind)
        if steps:
            tokens = sum(step.tokens for step in steps)
            took = sum(step.end - step.start - step.recorder_ns for step in steps) / 1e6
            count = f"{counted(len(steps), 'step')}, {tokens} tokens"
            yield f"  {kind:<10} {count}: {took:.2f} ms, {took / len(steps):.2f} ms a step (without the recorder)"


def _split(profile: Profile) -> Iterator[str]:
    yield f"  wall time  {1e3 * profile.wall_s:.2f} ms"
    for name, seconds in profile.split().items():
        yield f"    {name:<20}{1e3 * seconds:>12.2f} ms {_percent(seconds, profile.wall_s):>6} %"


def _table(name: str, rows: list[TableRow], profile: Profile) -> Iterator[str]:
    """A heading, the rows, and their sum."""
    whole = TableRow("all", "", Total.of(row.total for row in rows))
    cells = [(row.name, *_figures(row, profile.wall_s), row.backend) for row in (*rows, whole)]
    table = [(name, *COLUMNS, "backend"), *cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *figures, last in table:
        middle = "  ".join(f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=False))
        yield f"{first:<{widths[0]}}  {middle}  {last}".rstrip()


def _figures(row: TableRow, wall_s: float) -> tuple[str, ...]:
    total = row.total
    return (
        str(total.calls),
        f"{1e3 * total.seconds:.2f}",
        _percent(total.seconds, wall_s),
        _scaled(row.flops_per_s, 1e-9),
        _scaled(row.bytes_per_s, 1e-9),
        _scaled(row.roofline_share, 100),
        _limit(total),
        NOTHING if total.lost_s is None else f"{1e3 * total.lost_s:.2f}",
    )


def _limit(total: Total) -> str:
    """What binds the calls; where it is not the same for all, its share of the least time."""
    if total.limit is None:
        return NOTHING
    limit, share = total.limit
    return limit if share > 0.995 else f"{limit} {share:.0%}"


def _notes(profile: Profile, run: ProfiledRun, rows: Iterable[TableRow]) -> Iterator[str]:
    """What the columns mean in this run."""
    if run.waits:
        yield "time ms: each operation was waited for, before and after; without a profile operations overlap"
    yield "GFLOP/s, GB/s: what an operation must at least compute and move, divided by its time"
    if run.ranks > 1:
        yield "AllReduce, AllGather: GB/s is what the rank sends; the time includes the wait for the slowest rank"
    if run.chip is not None:
        yield "roofline %: the least time on the chip above, divided by the time; lost ms: time beyond that least time"
        yield "limit: what the least time is bound by, memory, compute or link; of several the first, and its share"
        if any((row.roofline_share or 0) > 1 for row in rows):
            yield "  above 100 %: the data was in a cache, or the chip is faster than its figures say"
    if profile.traced_steps < len(profile.steps):
        yield f"the trace holds the first {profile.traced_steps} of {len(profile.steps)} steps, the tables all"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}" if whole else NOTHING


def _scaled(value: float | None, factor: float) -> str:
    return NOTHING if value is None else _three_digits(value * factor)


def _three_digits(value: float) -> str:
    """At least three significant digits, never an exponent. A smaller value than LEAST is shown as <0.0001."""
    if 0 < value < LEAST:
        return f"<{LEAST}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"
