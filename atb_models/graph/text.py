"""A graph as a table of its nodes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from atb_models.graph.fold import Folded, Section, fold, within_layer
from atb_models.graph.graph import Node, OpGraph
from atb_models.graph.labels import Units, operands, results, step_title, subject_title, weights_read

WIDTH = 100
LEGEND = """\
K, M, G: 10^3, 10^6, 10^9. B: bytes of memory read and written; sent: bytes to other ranks; all of one
rank. by: the backend that serves it, ref is the reference body. inputs: %n is the result of node n,
%n.i one of several; weights, the module's own, are not listed."""
FOLDED = "Equal layers are shown once; a node that follows them reads the last one's %n."


def text(graphs: Mapping[str, OpGraph], model: str, *, all_layers: bool) -> str:
    """Tables of the steps by their names, with what is common above; ends with a line's end."""
    first = next(iter(graphs.values()))
    lines = [f"graph of {subject_title(model, first)}", *LEGEND.split("\n")]
    folded = {name: fold(graph, all_layers=all_layers) for name, graph in graphs.items()}
    if any(section.times > 1 for sections in folded.values() for section in sections.sections):
        lines.append(FOLDED)
    for name, step in folded.items():
        lines += ["", step_title(name, step.graph), *_table(step), *_totals(step)]
    return "\n".join(lines) + "\n"


def _table(step: Folded) -> list[str]:
    units = Units.of(step.graph)
    rows = [_head(units), *(_row(step, node, units) for section in step.sections for node in section.nodes)]
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    lines = [_line(row, widths) for row in rows]
    table, at = lines[:1], 1
    for section in step.sections:
        table += [_heading(section, units), *lines[at : at + len(section.nodes)]]
        at += len(section.nodes)
    return table


def _head(units: Units) -> tuple[str, ...]:
    sent = f"sent {units.sent.name}"
    return "#", "operation", "module", units.flops.name, units.moved.name, sent, "by", "inputs -> results"


def _row(step: Folded, node: Node, units: Units) -> tuple[str, ...]:
    figures = units.flops(node.cost.flops), units.moved(node.cost.moved), units.sent(node.cost.sent)
    served = "ref" if node.backend == "reference" else node.backend
    flow = f"{' '.join(operands(step, node))} -> {results(node)}"
    return str(node.index), node.op, within_layer(node.module) or "-", *figures, served, flow


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Names to the left, figures to the right; the last cell is as long as it is."""
    cells = [
        cell.ljust(width) if place in (1, 2, 6) else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row[:-1], widths, strict=True))
    ]
    return " ".join([*cells, row[-1]])


def _heading(section: Section, units: Units) -> str:
    if section.layer is None:
        return f"outside the layers: {units.all(section.cost)}"
    if section.times == 1:
        return f"layers.{section.numbers}: {units.all(section.cost)}"
    return f"layers.{section.numbers} x {section.times}: each {units.all(section.cost)}"


def _totals(step: Folded) -> list[str]:
    graph, units = step.graph, Units.of(step.graph)
    calls = ", ".join(f"{op}\xa0{times}" for op, times in graph.counts().items())
    lines = textwrap.wrap(f"calls: {calls}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    lines = [line.replace("\xa0", " ") for line in lines]
    lines.append(f"total: {units.all(graph.cost)}; weights read: {units.moved(weights_read(graph))} {units.moved.name}")
    peak, node = graph.peak_activation_bytes, max(graph.nodes, key=lambda node: node.peak_bytes)
    lines.append(
        f"peak of activations: {units.moved(peak)} {units.moved.name}, in node {step.shown[node.index]} {node.op}"
    )
    return lines + [f"warning: outside the operations: {work}" for work in dict.fromkeys(graph.stray)]
