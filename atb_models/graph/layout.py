"""A folded graph on paper: corners of boxes, points of lines, frames of layers.

Lengths are in pixels, y grows downwards. See graph/places.py for columns, rows and lanes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from atb_models.graph.fold import Edge, Folded, Section
from atb_models.graph.places import LEFT, RIGHT, Key, Place, lanes_of, line_key, places_of, side

BOX_WIDTH, BOX_HEIGHT = 262, 58
ROW = 80  # from a box's top to the next one's
COLUMN = BOX_WIDTH + 44
LANE, GUTTER = 13, 66  # between lanes; between the innermost and column 0, where lines are named
PADDING, HEADING = 14, 16  # inside a frame; more above its first box
FRAME_GAP = 26
RESIDUAL = "residual_TH"

IN, OUT = "in", "out"

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A way from one box to another; the last point is the arrow's tip."""

    points: tuple[Point, ...]
    arguments: tuple[str, ...]  # what it is to be called at its arrow; () for a line between neighbours
    residual: bool


@dataclass(frozen=True)
class Frame:
    """Around one section."""

    section: Section
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Drawing:
    """Corners (left, top) of the boxes by node, lines, frames; all within (0, 0) to (width, height)."""

    boxes: dict[int, Point]
    lines: list[Line]
    frames: list[Frame]
    width: float
    height: float


def lay_out(step: Folded) -> Drawing:
    """Place everything of one step."""
    edges = list(step.edges())
    places = places_of(step, edges)
    lanes = lanes_of(edges, places)
    count = max(lanes.values(), default=-1) + 1
    left: float = PADDING + count * LANE + GUTTER
    width = left + COLUMN + BOX_WIDTH + PADDING
    tops, frames, height = _rows(step.sections, places, width)
    boxes = {node: (left + column * COLUMN, tops[row]) for node, (column, row) in places.items()}
    xs = {key: left - GUTTER - lane * LANE for key, lane in lanes.items()}
    return Drawing(boxes, _lines(edges, places, boxes, xs), frames, width, height)


def _rows(
    sections: tuple[Section, ...], places: dict[int, Place], width: float
) -> tuple[list[float], list[Frame], float]:
    """The top of each row, the frames of the sections that are layers, the height of all."""
    tops: list[float] = []
    frames = []
    y: float = 0
    for section in sections:
        rows = sum(places[node.index][0] == 0 for node in section.nodes)
        framed = section.layer is not None
        first = y + (PADDING + HEADING if framed else 0)
        tops += [first + ROW * row for row in range(rows)]
        bottom = tops[-1] + BOX_HEIGHT
        if framed:
            frames.append(Frame(section, 0, y, width, bottom + PADDING - y))
            bottom += PADDING
        y = bottom + FRAME_GAP
    return tops, frames, y - FRAME_GAP


def _lines(edges: list[Edge], places: dict[int, Place], boxes: dict[int, Point], lanes: dict[Key, float]) -> list[Line]:
    ports = _ports(edges, places)
    lines = []
    for edge in edges:
        (x, y), (to_x, to_y) = boxes[edge.source], boxes[edge.target]
        middle, to_middle, where = x + BOX_WIDTH / 2, to_x + BOX_WIDTH / 2, side(edge, places)
        out, into = (
            node_y + ports.get((node, where, way, line_key(edge)), 0)
            for node, node_y, way in ((edge.source, y, OUT), (edge.target, to_y, IN))
        )
        if where == LEFT:
            lane = lanes[line_key(edge)]
            points = [(x, out), (lane, out), (lane, into), (to_x, into)]
        elif x < to_x:  # into a branch
            points = [(x + BOX_WIDTH, out), (to_middle, out), (to_middle, to_y)]
        elif x > to_x:  # out of one
            points = [(middle, y + BOX_HEIGHT), (middle, into), (to_x + BOX_WIDTH, into)]
        else:
            points = [(middle, y + BOX_HEIGHT), (middle, to_y)]
        arguments = edge.arguments if where == LEFT else ()
        lines.append(Line(tuple(points), arguments, RESIDUAL in edge.arguments))
    return lines


def _ports(edges: list[Edge], places: dict[int, Place]) -> dict[tuple[int, str, str, Key], float]:
    """Heights on the sides of boxes, from their tops, where lines arrive and, below those, leave: evenly apart."""
    ends: dict[tuple[int, str], dict[tuple[str, Key], None]] = defaultdict(dict)
    for way in (IN, OUT):
        for edge in edges:
            where, node = side(edge, places), edge.target if way == IN else edge.source
            if where == LEFT or (where == RIGHT and places[node][0] == 0):
                ends[node, where][way, line_key(edge)] = None
    return {
        (node, where, way, key): BOX_HEIGHT * (number + 1) / (len(lines) + 1)
        for (node, where), lines in ends.items()
        for number, (way, key) in enumerate(lines)
    }
