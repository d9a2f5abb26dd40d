"""A profile in the Trace Event Format of the Chromium project, for chrome://tracing and Perfetto."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from atb_models.profiler.profile import Call, Profile, StepRecord

LANES = ("steps", "modules", "operations")
STEPS, MODULES, OPERATIONS = range(len(LANES))
Event = dict[str, Any]


def trace_events(profile: Profile, rank: int) -> Iterator[Event]:
    """The events of the traced steps. The rank is a process; its steps, modules and operations are three threads.

    Times are microseconds since the recording began. A module lasts from its first operation to its last.
    """
    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
    for lane, name in enumerate(LANES):
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": lane, "args": {"name": name}}
    calls = iter(profile.calls)
    call = next(calls, None)
    for number, step in enumerate(profile.steps[: profile.traced_steps]):
        own: list[Call] = []
        while call is not None and call.start < step.end:
            own.append(call)
            call = next(calls, None)
        yield _event(rank, STEPS, f"{step.kind} {number}", step.start, step.end, _step_arguments(step))
        yield from _modules(rank, own, 1)
        for one in own:
            yield _event(rank, OPERATIONS, one.op, one.start, one.end, _call_arguments(one))


def _modules(rank: int, calls: Sequence[Call], depth: int) -> Iterator[Event]:
    """An event for each run of calls whose paths share their first `depth` parts; within it those of `depth` + 1."""
    for path, group in groupby(calls, lambda call: _prefix(call.module, depth)):
        own = list(group)
        if path:
            yield _event(rank, MODULES, path, own[0].start, own[-1].end, {})
            yield from _modules(rank, own, depth + 1)


def _prefix(module: str, depth: int) -> str:
    """The first `depth` parts of a path; empty for a shorter path."""
    parts = module.split(".")
    return ".".join(parts[:depth]) if len(parts) >= depth else ""


def _event(rank: int, lane: int, name: str, start: int, end: int, arguments: Event) -> Event:
    return {
        "ph": "X", "name": name, "cat": LANES[lane], "pid": rank, "tid": lane,
        "ts": start / 1000, "dur": (end - start) / 1000, "args": arguments,
    }  # fmt: skip


def _step_arguments(step: StepRecord) -> Event:
    return {"tokens": step.tokens, "sequences": step.sequences, "longest KV": step.longest_kv}


def _call_arguments(call: Call) -> Event:
    arguments: Event = {
        "module": call.module,
        "backend": call.backend,
        "flops": call.cost.flops,
        "bytes": call.cost.moved,
        "inputs": ["x".join(map(str, shape)) for shape in call.shapes],
    }
    if call.cost.sent:
        arguments["bytes sent"] = call.cost.sent
    if call.least is not None and call.end > call.start:
        arguments["roofline %"] = float(f"{1e11 * call.least.seconds / (call.end - call.start):.3g}")
        arguments["limit"] = call.least.limit
    return arguments
