"""A profile summed by operation or by module; what lost the most time comes first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from atb_models.profiler.profile import CallKey, Profile, Total


@dataclass(frozen=True)
class TableRow:
    """One line of a table. Rates are per second of the calls' own time; None if that is 0."""

    name: str
    backend: str  # that ran the calls
    total: Total

    @property
    def flops_per_s(self) -> float | None:
        return self._rate(self.total.cost.flops)

    @property
    def bytes_per_s(self) -> float | None:
        """Memory traffic; for a collective, what the rank sends."""
        return self._rate(self.total.traffic)

    @property
    def roofline_share(self) -> float | None:
        """The roofline's time / the time; above 1 if the calls were faster than the chip's figures allow."""
        return None if self.total.roofline_s is None else self._rate(self.total.roofline_s)

    def _rate(self, amount: float) -> float | None:
        return amount / self.total.seconds if self.total.ns else None


def by_operation(profile: Profile) -> list[TableRow]:
    """A row for each operation."""
    return _rows(profile, lambda place: place.op)


def by_module(profile: Profile) -> list[TableRow]:
    """A row for each module; equal modules of all layers share a row."""
    return _rows(profile, lambda place: folded(place.module))


def folded(module: str) -> str:
    """layers.3.attn.qkv -> layers.*.attn.qkv; the decoder itself is (model)."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module) or "(model)"


def rest(rows: list[TableRow]) -> TableRow:
    """The sum of these rows, for the end of a shortened table."""
    backends = _joined(row.backend for row in rows)
    return TableRow(f"the rest ({len(rows)})", backends, Total.of(row.total for row in rows))


def _rows(profile: Profile, name: Callable[[CallKey], str]) -> list[TableRow]:
    groups: dict[str, list[CallKey]] = {}
    for place in profile.totals:
        groups.setdefault(name(place), []).append(place)
    rows = [
        TableRow(group, _joined(place.backend for place in places), Total.of(profile.totals[place] for place in places))
        for group, places in groups.items()
    ]
    return sorted(rows, key=_worst_first)


def _worst_first(row: TableRow) -> tuple[float, float]:
    """Sort key: by time lost, or by time without a roofline."""
    lost = row.total.lost_s
    return -(row.total.seconds if lost is None else lost), -row.total.seconds


def _joined(backends: Iterable[str]) -> str:
    return ", ".join(sorted({name for joined in backends for name in joined.split(", ")}))
