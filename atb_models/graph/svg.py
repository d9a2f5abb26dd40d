"""Graphs as a drawing: boxes coloured by kind of operation, frames around layers, steps side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

from atb_models.graph.fold import Folded, Section, fold, within_layer
from atb_models.graph.graph import Node, OpGraph
from atb_models.graph.ink import EDGE, FONTS, GREY, RESIDUAL, arrow, draw_line, draw_text, text_width
from atb_models.graph.labels import Units, operands, results, step_title, subject_title, weights_read, without_letters
from atb_models.graph.layout import BOX_HEIGHT, BOX_WIDTH, GUTTER, Drawing, Frame, Line, Point, lay_out

# Fill and border by kind; an operation that no kind names moves data or works element by element.
KINDS = {
    "matrix product": ("#dbeafe", "#2563eb"),
    "attention": ("#ede9fe", "#7c3aed"),
    "routing": ("#fef3c7", "#d97706"),
    "collective": ("#fee2e2", "#dc2626"),
    "memory and elementwise": ("#f1f5f9", "#64748b"),
}
OTHER = "memory and elementwise"
KIND_OF = {
    "Linear": "matrix product",
    "GroupedMatmul": "matrix product",
    "Router": "matrix product",
    "PagedAttention": "attention",
    "MoeGating": "routing",
    "MoeInitRouting": "routing",
    "MoeFinalizeRouting": "routing",
    "CountExpertTokens": "routing",
    "AllReduce": "collective",
    "AllGather": "collective",
}
MARGIN, TOP, STEP_HEAD, STEP_GAP = 28, 84, 58, 48


def svg(graphs: Mapping[str, OpGraph], model: str, *, all_layers: bool) -> str:
    """The steps by their names, side by side under one title and legend."""
    steps = {name: fold(graph, all_layers=all_layers) for name, graph in graphs.items()}
    layouts = {name: lay_out(step) for name, step in steps.items()}
    body: list[str] = []
    x: float = MARGIN
    for name, step in steps.items():
        body += [f'<g id={quoteattr(name)} transform="translate({x:g} {TOP})">', *_step(name, step, layouts[name])]
        body.append("</g>")
        x += layouts[name].width + STEP_GAP
    width = x - STEP_GAP + MARGIN
    height = TOP + STEP_HEAD + max(layout.height for layout in layouts.values()) + MARGIN
    title = subject_title(model, next(iter(graphs.values())))
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="{FONTS}">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f"<defs>{arrow('arrow', EDGE)}{arrow('residual', RESIDUAL)}</defs>",
        draw_text((MARGIN, 36), title, 18, width - 2 * MARGIN, weight="bold"),
        *_legend(),
    ]
    return "\n".join([*head, *body, "</svg>"]) + "\n"


def _legend() -> Iterator[str]:
    x: float = MARGIN
    for kind, (fill, border) in KINDS.items():
        yield f'<rect x="{x:g}" y="53" width="14" height="14" rx="3" fill="{fill}" stroke="{border}"/>'
        yield draw_text((x + 20, 64), kind, 11, 200, fill=GREY)
        x += 20 + text_width(kind, 11) + 18
    yield draw_line(Line(((x, 60), (x + 28, 60)), (), residual=True))
    yield draw_text((x + 36, 64), "residual stream", 11, 200, fill=GREY)


def _step(name: str, step: Folded, layout: Drawing) -> Iterator[str]:
    graph, units = step.graph, Units.of(step.graph)
    yield draw_text((0, 18), step_title(name, graph), 14, layout.width, weight="bold")
    total = f"{units.all(graph.cost)}; weights read: {units.moved(weights_read(graph))} {units.moved.name}"
    yield draw_text((0, 38), total, 11, layout.width, fill=GREY)
    yield f'<g transform="translate(0 {STEP_HEAD})">'
    for frame in layout.frames:
        yield from _frame(frame, units)
    for line in sorted(layout.lines, key=lambda line: line.residual):
        yield draw_line(line)
    for section in step.sections:
        for node in section.nodes:
            yield from _box(step, node, units, layout.boxes[node.index])
    for line in layout.lines:
        if line.arguments:
            yield _name(line)
    yield "</g>"


def _frame(frame: Frame, units: Units) -> Iterator[str]:
    """Its title is at the right, where no line to or from another section runs."""
    yield (
        f'<rect x="{frame.x:g}" y="{frame.y:g}" width="{frame.width:g}" height="{frame.height:g}" rx="10" '
        'fill="#fafafa" stroke="#94a3b8" stroke-dasharray="5 4"/>'
    )
    right, room = frame.x + frame.width - 14, BOX_WIDTH
    yield draw_text((right, frame.y + 24), _frame_title(frame.section), 13, room, anchor="end", weight="bold")
    each = "each " if frame.section.times > 1 else ""
    yield draw_text((right, frame.y + 42), each + units.all(frame.section.cost), 10, room, anchor="end", fill=GREY)


def _frame_title(section: Section) -> str:
    return f"layers {section.numbers} (x {section.times})" if section.times > 1 else f"layer {section.numbers}"


def _box(step: Folded, node: Node, units: Units, corner: Point) -> Iterator[str]:
    x, y = corner
    fill, border = KINDS[KIND_OF.get(node.op, OTHER)]
    number, room = str(node.index), BOX_WIDTH - 20
    module_room = room - text_width(f"{number} ", 10) - text_width(f"{node.op} ", 12)
    yield f'<g class="node"><title>{escape(_hover(step, node))}</title>'
    yield (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{fill}" stroke="{border}"/>'
    )
    yield draw_text((x + 10, y + 18), number, 10, room, fill=GREY)
    yield draw_text((x + 10 + text_width(f"{number} ", 10), y + 18), node.op, 12, room, weight="bold")
    right = x + BOX_WIDTH - 10
    yield draw_text((right, y + 18), within_layer(node.module), 10, module_room, anchor="end", fill=GREY)
    yield draw_text((x + 10, y + 34), results(node), 10, room)
    yield draw_text((x + 10, y + 49), units.all(node.cost), 10, room, fill=GREY)
    yield "</g>"


def _hover(step: Folded, node: Node) -> str:
    return f"{node.index} {node.op} {node.module}\n{', '.join(operands(step, node))} -> {results(node)}\n{node.backend}"


def _name(line: Line) -> str:
    """What arrives, above the end of its line."""
    x, y = line.points[-1]
    text = ", ".join(map(without_letters, line.arguments))
    return draw_text((x - 12, y - 4), text, 9, GUTTER - 16, anchor="end", fill=RESIDUAL if line.residual else GREY)
