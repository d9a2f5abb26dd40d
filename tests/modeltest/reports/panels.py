"""What plots of speed show, whatever draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Case = Mapping[str, Any]
Value = Callable[[Case], float | None]
Name = Callable[[Case], str]
LOGARITHMIC = 20  # an axis whose largest value is so many times its smallest


class Series(NamedTuple):
    """A line: a value at each x, or None; and the roofline's."""

    label: str
    values: list[float | None]
    bounds: list[float | None]


class Panel(NamedTuple):
    """One plot. x: the names along the axis."""

    title: str
    axis: str
    x: list[str]
    series: list[Series]

    @property
    def present(self) -> list[float]:
        """All values and bounds."""
        parts = (*(line.values for line in self.series), *(line.bounds for line in self.series))
        return [value for part in parts for value in part if value]

    @property
    def is_logarithmic(self) -> bool:
        return max(self.present) > LOGARITHMIC * min(self.present)

    @property
    def has_bounds(self) -> bool:
        return any(bound for line in self.series for bound in line.bounds)


def _bound(part: str) -> Value:
    return lambda case: case["roofline"] and case["roofline"][part]


def _most_throughput(case: Case) -> float | None:
    return case["roofline"] and 1e3 * case["batch"] / case["roofline"]["decode_ms"]


# Title, what is measured, its bound.
QUANTITIES: tuple[tuple[str, Value, Value], ...] = (
    ("first token of all requests, ms", lambda case: case["prefill_all_ms"], _bound("prefill_ms")),
    ("each later token, ms", lambda case: case["decode_ms"], _bound("decode_ms")),
    ("tokens/s while decoding", lambda case: case["non_first_throughput"], _most_throughput),
)


def panels(cases: Iterable[Case]) -> list[Panel]:
    """The three quantities over lengths, a line for each batch; and over batches, where there are several of them."""
    found = list(cases)
    by_pair = _names(found, lambda case: (case["in"], case["out"]), _pair)
    by_size = _names(found, lambda case: (case["batch"],), _batch)
    sizes = _names(found, lambda case: (case["batch"],), _size)
    shown: list[Panel] = []
    if len(by_pair) > 1 or len(by_size) == 1:
        shown += _over("prompt + answer tokens", found, (_pair, by_pair), (_batch, by_size))
    if len(by_size) > 1:
        shown += _over("requests at once", found, (_size, sizes), (_pair, by_pair))
    return [panel for panel in shown if any(value for line in panel.series for value in line.values)]


def _names(cases: Sequence[Case], order: Callable[[Case], tuple[int, ...]], name: Name) -> list[str]:
    return list(dict.fromkeys(name(case) for case in sorted(cases, key=order)))


def _over(axis: str, cases: Sequence[Case], x: tuple[Name, list[str]], lines: tuple[Name, list[str]]) -> list[Panel]:
    (x_of, names), (line_of, labels) = x, lines
    at = {(line_of(case), x_of(case)): case for case in cases}
    of_lines = {label: [at.get((label, name)) for name in names] for label in labels}
    return [
        Panel(title, axis, names, [_line(label, found, of, bound) for label, found in of_lines.items()])
        for title, of, bound in QUANTITIES
    ]


def _line(label: str, cases: Sequence[Case | None], of: Value, bound: Value) -> Series:
    values, bounds = ([None if case is None else part(case) for case in cases] for part in (of, bound))
    return Series(label, values, bounds)


def _pair(case: Case) -> str:
    return f"{case['in']}+{case['out']}"


def _batch(case: Case) -> str:
    return f"batch {case['batch']}"


def _size(case: Case) -> str:
    return str(case["batch"])
