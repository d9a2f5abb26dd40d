"""What a recording has found: time and work of each operation, each step, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from atb_models.ops.cost import Cost

NS = 1e-9  # seconds


class Call(NamedTuple):
    """One call of an operation. Times are nanoseconds since the recording began."""

    op: str
    module: str  # path in the model, "" for the decoder itself
    backend: str
    start: int
    end: int
    cost: Cost
    roofline_s: float | None  # None: no chip to compare with
    shapes: tuple[tuple[int, ...], ...]  # of the tensors among its arguments


@dataclass(frozen=True)
class StepRecord:
    """One forward of the model. Times as in Call."""

    kind: str  # prefill: chunks of prompts; decode: one token a sequence; mixed: both
    tokens: int
    sequences: int
    longest_kv: int  # tokens of the longest sequence, the step's own included
    start: int
    end: int
    operations_ns: int
    recorder_ns: int  # the recorder's own work


@dataclass
class Total:
    """Of several calls."""

    calls: int = 0
    ns: int = 0
    cost: Cost = field(default_factory=Cost)
    traffic: float = 0  # bytes that bound the calls: sent by collectives, moved by all others
    roofline_s: float | None = None

    def count(self, call: Call) -> None:
        """Take in one more call."""
        self._add(1, call.end - call.start, call.cost, call.cost.sent or call.cost.moved, call.roofline_s)

    def _add(self, calls: int, ns: int, cost: Cost, traffic: float, roofline_s: float | None) -> None:
        self.calls += calls
        self.ns += ns
        self.cost += cost
        self.traffic += traffic
        if roofline_s is not None:
            self.roofline_s = (self.roofline_s or 0.0) + roofline_s

    @classmethod
    def of(cls, totals: Iterable[Total]) -> Total:
        """All of them together."""
        whole = cls()
        for total in totals:
            whole._add(total.calls, total.ns, total.cost, total.traffic, total.roofline_s)
        return whole

    @property
    def seconds(self) -> float:
        return self.ns * NS

    @property
    def lost_s(self) -> float | None:
        """Time beyond the roofline's; below 0 where the operation was faster than the chip is said to be."""
        return None if self.roofline_s is None else self.seconds - self.roofline_s


class CallKey(NamedTuple):
    """What calls are summed by."""

    kind: str  # of the step
    op: str
    module: str
    backend: str


@dataclass(frozen=True)
class Profile:
    """A recorded run of one rank; wall = operations + between operations + outside the model + recorder.

    totals: of all calls. calls: of the first steps only, as many as a trace can show; a step is there whole or not.
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
        """In the model's forward, the recorder's work included."""
        return NS * sum(step.end - step.start for step in self.steps)

    @property
    def between_s(self) -> float:
        """In the model's forward, between its operations."""
        return self.model_s - self.operations_s - self.recorder_s

    @property
    def outside_s(self) -> float:
        """Scheduling, messages to the ranks, sampling, text and its output."""
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
