"""Pieces of SVG: text that keeps to its room, lines with round corners and arrows."""

from __future__ import annotations

import unicodedata
from xml.sax.saxutils import escape

from atb_models.graph.layout import Line, Point

INK, GREY, EDGE, RESIDUAL = "#0f172a", "#475569", "#64748b", "#059669"
RADIUS = 6
CHARACTER = 0.62  # of the size: a little more than any of the fonts needs
FONTS = "'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"


def text_width(text: str, size: float) -> float:
    """At most what `text` takes in a monospaced font; East Asian characters are two wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text) * size * CHARACTER


def draw_text(
    at: Point, text: str, size: float, room: float, *, anchor: str = "start", weight: str = "normal", fill: str = INK
) -> str:
    """One line, cut to `room` pixels."""
    if text_width(text, size) > room:
        while text and text_width(text + "..", size) > room:
            text = text[:-1]
        text = text.rstrip() + ".."
    return (
        f'<text x="{at[0]:g}" y="{at[1]:g}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}">{escape(text)}</text>'
    )


def draw_line(line: Line) -> str:
    """Straight pieces with rounded corners, an arrow at the end."""
    points = line.points
    steps = [f"M{points[0][0]:g} {points[0][1]:g}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        (a, b), (c, d) = _towards(corner, before), _towards(corner, after)
        steps.append(f"L{a:g} {b:g}Q{corner[0]:g} {corner[1]:g} {c:g} {d:g}")
    steps.append(f"L{points[-1][0]:g} {points[-1][1]:g}")
    colour, arrow, width = (RESIDUAL, "residual", 2) if line.residual else (EDGE, "arrow", 1.3)
    return (
        f'<path d="{"".join(steps)}" fill="none" stroke="{colour}" stroke-width="{width}" marker-end="url(#{arrow})"/>'
    )


def _towards(corner: Point, other: Point) -> Point:
    """The point RADIUS from the corner, or halfway to the other where that is nearer."""
    (x, y), (to_x, to_y) = corner, other
    length = abs(to_x - x) + abs(to_y - y)  # pieces are upright or level
    share = min(RADIUS / length, 0.5) if length else 0
    return x + (to_x - x) * share, y + (to_y - y) * share


def arrow(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8Z" fill="{colour}"/></marker>'
    )
