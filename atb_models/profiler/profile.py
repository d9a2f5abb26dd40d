"""The results of a recording: time and work of each operation and step, and the time between them."""

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
    roofline_s: float | None  # None without a chip to compare with
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
    roofline_s: float | None = None

    def count(self, call: Call) -> None:
        """Add a call."""
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
        """The sum of these."""
        whole = cls()
        for total in totals:
            whole._add(total.calls, total.ns, total.cost, total.traffic, total.roofline_s)
        return whole

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
