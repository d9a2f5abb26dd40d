"""The results of a recording: time and work of each operation and step, and the time between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from atb_models.ops.cost import Cost

NS = 1e-9  # seconds


class Least(NamedTuple):
    """The least time of a call on the chip that it is compared with, and what binds it: compute, memory or link."""

    seconds: float
    limit: str


class Call(NamedTuple):
    """One call of an operation. Times are nanoseconds since the recording began."""

    op: str
    module: str  # path in the model, "" for the decoder itself
    backend: str
    start: int
    end: int
    cost: Cost
    least: Least | None  # None without a chip to compare with
    shapes: tuple[tuple[int, ...], ...]  # of the tensor arguments


@dataclass(frozen=True)
class StepRecord:
    """One forward of the model. Times as in Call."""

    kind: str  # prefill: chunks of prompts; decode: one token a sequence; mixed: both
    tokens: int
    sequences: int
    longest_kv: int  # tokens of the longest sequence, with those of this step
    start: int
    end: int
    operations_ns: int
    recorder_ns: int  # the recorder's own work


@dataclass
class Total:
    """The sums of several calls."""

    calls: int = 0
    ns: int = 0
    cost: Cost = field(default_factory=Cost)
    traffic: float = 0  # bytes that bound the calls: those sent by collectives, those moved by other operations
    least_s: dict[str, float] = field(default_factory=dict)  # seconds at the roofline, by what binds

    def count(self, call: Call) -> None:
        """Add a call."""
        self._add(1, call.end - call.start, call.cost, call.cost.sent or call.cost.moved)
        if call.least is not None:
            self.least_s[call.least.limit] = self.least_s.get(call.least.limit, 0.0) + call.least.seconds

    def _add(self, calls: int, ns: int, cost: Cost, traffic: float) -> None:
        self.calls += calls
        self.ns += ns
        self.cost += cost
        self.traffic += traffic

    @classmethod
    def of(cls, totals: Iterable[Total]) -> Total:
        """The sum of these."""
        whole = cls()
        for total in totals:
            whole._add(total.calls, total.ns, total.cost, total.traffic)
            for limit, seconds in total.least_s.items():
                whole.least_s[limit] = whole.least_s.get(limit, 0.0) + seconds
        return whole

    @property
    def roofline_s(self) -> float | None:
        """The least seconds of the calls; None without a chip."""
        return sum(self.least_s.values()) if self.least_s else None

    @property
    def limit(self) -> tuple[str, float] | None:
        """What binds the most of the least time, and its share of it; None without a chip or work."""
        whole = self.roofline_s
        if not whole:
            return None
        limit, seconds = max(self.least_s.items(), key=lambda item: item[1])
        return limit, seconds / whole

    @property
    def seconds(self) -> float:
        return self.ns * NS

    @property
    def lost_s(self) -> float | None:
        """Time beyond the roofline's; negative if the operation was faster than the chip's figures allow."""
        return None if self.roofline_s is None else self.seconds - self.roofline_s


class CallKey(NamedTuple):
    """Calls with the same key are summed."""

    kind: str  # of the step
    op: str
    module: str
    backend: str


@dataclass(frozen=True)
class Profile:
    """A recorded run of one rank. Wall time = operations + between operations + outside the model + recorder.

    totals: of all calls. calls: those of the first `traced_steps` steps, as many as a trace can show.
    """

    wall_ns: int
    steps: tuple[StepRecord, ...]
    totals: dict[CallKey, Total]
    calls: tuple[Call, ...]
    traced_steps: int

    @property
    def operations_s(self) -> float:
        return NS * sum(step.operations_ns for step in self.steps)

    @property
    def recorder_s(self) -> float:
        return NS * sum(step.recorder_ns for step in self.steps)

    @property
    def model_s(self) -> float:
        """Seconds in the model's forward, with the recorder's work."""
        return NS * sum(step.end - step.start for step in self.steps)

    @property
    def between_s(self) -> float:
        """Seconds in the model's forward between its operations."""
        return self.model_s - self.operations_s - self.recorder_s

    @property
    def outside_s(self) -> float:
        """Seconds of scheduling, messages to the ranks, sampling, detokenizing and output."""
        return self.wall_s - self.model_s

    @property
    def wall_s(self) -> float:
        return NS * self.wall_ns

    def split(self) -> dict[str, float]:
        """The parts of the wall time in seconds."""
        return {
            "operations": self.operations_s,
            "between operations": self.between_s,
            "outside the model": self.outside_s,
            "recorder": self.recorder_s,
        }

    def of_kind(self, kind: str) -> list[StepRecord]:
        return [step for step in self.steps if step.kind == kind]
