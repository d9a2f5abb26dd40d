"""Plots as inline SVG, whose colours are the page's: classes s0, s1 ... are the lines', the rest are named in CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from modeltest.reports.intervals import Interval
from modeltest.reports.panels import Panel, Series
from modeltest.reports.report_style import LIGHT

COLOURS = len(LIGHT)
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 42
ROW, INDENT, LABEL = 40, 22, 54
LETTER = 6.5  # wide, of a name along the axis
STEPS = (1, 2, 5, 10)
LINEAR_TICKS = 5


class Dot(NamedTuple):
    """A share with its interval."""

    label: str
    value: float
    interval: Interval


class Scale(NamedTuple):
    """From values to the vertical place in a plot."""

    low: float
    high: float
    is_logarithmic: bool

    def y(self, value: float) -> float:
        low, high, value = (math.log(x) if self.is_logarithmic else x for x in (self.low, self.high, value))
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))


def panel_svg(panel: Panel) -> str:
    """Lines with dots, rooflines dashed; a dot says what and how much it is when pointed at."""
    ticks = logarithmic_ticks(panel.present) if panel.is_logarithmic else linear_ticks(0.0, max(panel.present))
    scale = Scale(ticks[0], ticks[-1], panel.is_logarithmic)
    parts = [_grid(tick, scale) for tick in ticks]
    places = [LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / len(panel.x) for place in range(len(panel.x))]
    parts += [
        f'<text class="x" x="{x:.1f}" y="{HEIGHT - 24}">{escape(n)}</text>'
        for x, n in list(zip(places, panel.x, strict=True))[:: _every(panel.x)]
    ]
    parts.append(f'<text class="x" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}">{escape(panel.axis)}</text>')
    for number, line in enumerate(panel.series):
        parts += _line(line, f"s{number % COLOURS}", places, panel.x, scale)
    return _svg(HEIGHT, panel.title, parts)


def dots_svg(title: str, dots: Sequence[Dot]) -> str:
    """Shares one below another, each with its interval as a bar."""
    ticks = linear_ticks(min(dot.interval.low for dot in dots), max(dot.interval.high for dot in dots))
    height = ROW * len(dots) + 34

    def x(value: float) -> float:
        return INDENT + (WIDTH - 2 * INDENT) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="4" y2="{height - 22}"/>' for t in ticks]
    parts += [f'<text class="x" x="{x(tick):.1f}" y="{height - 6}">{_short(tick)}</text>' for tick in ticks]
    for number, dot in enumerate(dots):
        y = ROW * number + 28
        low, high = dot.interval
        parts.append(f'<text class="row" x="{INDENT}" y="{y - 10}">{escape(_cut(dot.label))}</text>')
        parts.append(f'<line class="s0" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<circle class="s0" cx="{x(dot.value):.1f}" cy="{y}" r="4"><title>{dot.value:.4f}</title></circle>'
        )
    return _svg(height, title, parts)


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers, from one at or below `low` to one at or above `high`."""
    rough = ((high - low) or abs(high) or 1.0) / LINEAR_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(step for step in STEPS if step * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def logarithmic_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten around positive values; powers alone where these would be many."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ticks = [float(f"{step}e{power}") for power in range(low, high + 1) for step in STEPS[:3]]
    first = max(place for place, tick in enumerate(ticks) if tick <= min(values))
    last = min(place for place, tick in enumerate(ticks) if tick >= max(values))
    if last - first > 2 * LINEAR_TICKS:
        return [float(f"1e{power}") for power in range(low, high + 1)]
    return ticks[first : last + 1]


def _every(names: Sequence[str]) -> int:
    """The one of so many names that is written, so that none runs into the next; a dot says its own."""
    room = (WIDTH - LEFT - RIGHT) / len(names)
    return math.ceil((max(map(len, names)) + 1) * LETTER / room)


def _line(line: Series, name: str, places: Sequence[float], names: Sequence[str], scale: Scale) -> list[str]:
    parts = [
        f'<polyline class="{name}{extra}" points="{points}"/>'
        for values, extra in ((line.bounds, " bound"), (line.values, ""))
        if (
            points := " ".join(
                f"{x:.1f},{scale.y(value):.1f}" for x, value in zip(places, values, strict=True) if value
            )
        )
    ]
    return parts + [
        f'<circle class="{name}" cx="{x:.1f}" cy="{scale.y(value):.1f}" r="3.5">'
        f"<title>{escape(line.label)}, {escape(x_name)}: {_short(value)}</title></circle>"
        for x, x_name, value in zip(places, names, line.values, strict=True)
        if value
    ]


def _grid(tick: float, scale: Scale) -> str:
    y = scale.y(tick)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{_short(tick)}</text>'
    )


def _cut(text: str) -> str:
    """What the width has room for."""
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def _short(value: float) -> str:
    """With four digits at most, and no powers of ten up to a million."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    label = escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
