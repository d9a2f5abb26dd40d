"""Rates of all engines in turns, beside the machine's limits."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from native import Machine

from peers.cases import Case, Work
from peers.dtypes import Stored
from peers.engines import Engine, PeerError, Unable, close_all, say

OURS = "atb-models"


@dataclass
class Round:
    """Medians of the round. read: bytes per second, flops: by data type per second; rates: tokens per second."""

    read: float
    flops: dict[torch.dtype, float]
    rates: dict[tuple[str, Case], float]


@dataclass
class Measured:
    """What one dtype gave. stored: by engine, left out where it has no such model or dtype, left_out: why.

    failures: (engine, case, or None for all of them) -> why.
    """

    dtype: str
    engines: list[str]
    cases: Sequence[Case]
    stored: dict[str, Stored]
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    failures: dict[tuple[str, Case | None], str] = field(default_factory=dict)

    def failed(self, engine: str, case: Case) -> bool:
        return (engine, None) in self.failures or (engine, case) in self.failures

    def has(self, engine: str, case: Case) -> bool:
        """Whether there is a rate."""
        return engine not in self.left_out and not self.failed(engine, case)

    def rate(self, engine: str, case: Case) -> float:
        return statistics.median(one.rates[engine, case] for one in self.rounds)

    def ratio(self, engine: str, case: Case) -> float:
        """Ours over the engine's, within each round."""
        return statistics.median(one.rates[OURS, case] / one.rates[engine, case] for one in self.rounds)

    def limit(self, work: Work, case: Case) -> float:
        """Tokens per second, of this project's way to hold the model."""
        return statistics.median(self._limits(OURS, work, case))

    def share(self, engine: str, case: Case, work: Work) -> float:
        """Of the limit of the engine's own way to hold the model."""
        limits = self._limits(engine, work, case)
        return statistics.median(
            one.rates[engine, case] / limit for one, limit in zip(self.rounds, limits, strict=True)
        )

    @property
    def products(self) -> list[torch.dtype]:
        """The data types in which the engines multiply, this project's first."""
        return list(dict.fromkeys(self.stored[name].products for name in (OURS, *self.stored)))

    def median_read(self) -> float:
        """Bytes per second."""
        return statistics.median(one.read for one in self.rounds)

    def median_flops(self, dtype: torch.dtype) -> float:
        """Operations per second."""
        return statistics.median(one.flops[dtype] for one in self.rounds)

    def _limits(self, engine: str, work: Work, case: Case) -> list[float]:
        element, products = self.stored[engine]
        return [work.limit(case, element, one.read, one.flops[products]) for one in self.rounds]


def measure(
    engines: Sequence[Engine],
    folder: Path,
    dtype: str,
    cases: Sequence[Case],
    rounds: int,
    machine: Machine,
) -> Measured:
    """`rounds` times each engine with every case; what fails is recorded and not tried again."""
    stored = {engine.name: how for engine in engines if (how := engine.stored(dtype)) is not None}
    measured = Measured(dtype, [engine.name for engine in engines], cases, stored)
    try:
        for engine in engines:
            if engine.name not in stored:
                _leave_out(measured, engine, "it has no such weights")
                continue
            try:
                measured.versions[engine.name] = engine.start(folder, dtype)
                engine.warm_up()
            except Unable as error:
                _leave_out(measured, engine, str(error))
            except PeerError as error:
                measured.failures[engine.name, None] = str(error)
                say(f"{dtype}: {engine.name} failed: {error}")
                engine.close()
        for number in range(rounds):
            measured.rounds.append(_round(engines, measured, machine, f"{dtype}, round {number + 1}"))
    finally:
        close_all(engines)
    return measured


def _leave_out(measured: Measured, engine: Engine, why: str) -> None:
    measured.left_out[engine.name] = why
    measured.stored.pop(engine.name, None)
    say(f"{measured.dtype}: {engine.name} is left out: {why}")


def _round(engines: Sequence[Engine], measured: Measured, machine: Machine, title: str) -> Round:
    reads: list[float] = []
    flops: dict[torch.dtype, list[float]] = {products: [] for products in measured.products}
    rates = {}
    for engine in engines:
        if engine.name in measured.left_out:
            continue
        reads += [machine.read_rate() for _ in range(3)]
        for products, found in flops.items():
            found += [machine.compute_rate(products) for _ in range(3)]
        for case in measured.cases:
            if measured.failed(engine.name, case):
                continue
            try:
                rates[engine.name, case] = engine.rate(case)
                say(f"{title}: {engine.name}, {case.name}: {rates[engine.name, case]:.1f} tokens/s")
            except PeerError as error:
                measured.failures[engine.name, case] = str(error)
                say(f"{title}: {engine.name}, {case.name} failed: {error}")
    medians = {products: statistics.median(found) for products, found in flops.items()}
    return Round(statistics.median(reads), medians, rates)
