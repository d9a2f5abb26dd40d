"""Rates of all engines in turns, beside the machine's limits."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from native import Machine

from peers.cases import Case, Work
from peers.engines import Engine, PeerError, close_all

# Our dtype: torch's in which products are bounded, bytes of a parameter, GGUF type. Weights of int8 with float
# activations (W8A16) meet Q8_0 here once the engine takes them.
DTYPES = {"fp16": (torch.float16, 2.0, "F16"), "bf16": (torch.bfloat16, 2.0, "BF16")}
OURS = "atb-models"


@dataclass
class Round:
    """read: bytes per second, flops: per second, medians of the round; rates: tokens per second."""

    read: float
    flops: float
    rates: dict[tuple[str, Case], float]


@dataclass
class Measured:
    """What one dtype gave. failures: (engine, case, or None for all of them) -> why."""

    dtype: str
    engines: list[str]
    cases: Sequence[Case]
    versions: dict[str, str] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    failures: dict[tuple[str, Case | None], str] = field(default_factory=dict)

    def failed(self, engine: str, case: Case) -> bool:
        return (engine, None) in self.failures or (engine, case) in self.failures

    def rate(self, engine: str, case: Case) -> float:
        return statistics.median(one.rates[engine, case] for one in self.rounds)

    def ratio(self, engine: str, case: Case) -> float:
        """Ours over the engine's, within each round."""
        return statistics.median(one.rates[OURS, case] / one.rates[engine, case] for one in self.rounds)

    def limit(self, work: Work, case: Case) -> float:
        return statistics.median(self._limits(work, case))

    def share(self, engine: str, case: Case, work: Work) -> float:
        limits = self._limits(work, case)
        return statistics.median(
            one.rates[engine, case] / limit for one, limit in zip(self.rounds, limits, strict=True)
        )

    def median_limits(self) -> tuple[float, float]:
        """Bytes and FLOPs per second."""
        return statistics.median(one.read for one in self.rounds), statistics.median(one.flops for one in self.rounds)

    def _limits(self, work: Work, case: Case) -> list[float]:
        element = DTYPES[self.dtype][1]
        return [work.limit(case, element, one.read, one.flops) for one in self.rounds]


def measure(
    engines: Sequence[Engine],
    folder: Path,
    dtype: str,
    cases: Sequence[Case],
    rounds: int,
    machine: Machine,
) -> Measured:
    """`rounds` times each engine with every case; what fails is recorded and not tried again."""
    measured = Measured(dtype, [engine.name for engine in engines], cases)
    try:
        for engine in engines:
            try:
                measured.versions[engine.name] = engine.start(folder, dtype)
                engine.warm_up()
            except PeerError as error:
                measured.failures[engine.name, None] = str(error)
                say(f"{dtype}: {engine.name} failed: {error}")
                engine.close()
        for number in range(rounds):
            measured.rounds.append(_round(engines, measured, machine, f"{dtype}, round {number + 1}"))
    finally:
        close_all(engines)
    return measured


def _round(engines: Sequence[Engine], measured: Measured, machine: Machine, title: str) -> Round:
    reads, flops, rates = [], [], {}
    for engine in engines:
        reads += [machine.read_rate() for _ in range(3)]
        flops += [machine.compute_rate(DTYPES[measured.dtype][0]) for _ in range(3)]
        for case in measured.cases:
            if measured.failed(engine.name, case):
                continue
            try:
                rates[engine.name, case] = engine.rate(case)
                say(f"{title}: {engine.name}, {case.name}: {rates[engine.name, case]:.1f} tokens/s")
            except PeerError as error:
                measured.failures[engine.name, case] = str(error)
                say(f"{title}: {engine.name}, {case.name} failed: {error}")
    return Round(statistics.median(reads), statistics.median(flops), rates)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
