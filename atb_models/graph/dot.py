"""Graphs as Graphviz reads them."""

from __future__ import annotations

from collections.abc import Mapping

from atb_models.graph.fold import Folded, Section, fold, within_layer
from atb_models.graph.graph import OpGraph
from atb_models.graph.labels import Units, results, step_title, subject_title


def dot(graphs: Mapping[str, OpGraph], model: str, *, all_layers: bool) -> str:
    """One digraph with a cluster for each step, in it one for each layer or run of equal layers."""
    first = next(iter(graphs.values()))
    lines = ["digraph steps {", f"  label={_quoted(subject_title(model, first))}; labelloc=t;"]
    lines += ["  node [shape=box, fontname=monospace];"]
    for name, graph in graphs.items():
        folded = fold(graph, all_layers=all_layers)
        lines += [f"  subgraph {_quoted(f'cluster {name}')} {{", f"    label={_quoted(step_title(name, graph))};"]
        lines += [f"    {line}" for section in folded.sections for line in _section(name, section, Units.of(graph))]
        lines += [f"    {line}" for line in _edges(name, folded)]
        lines += ["  }"]
    return "\n".join([*lines, "}"]) + "\n"


def _section(step: str, section: Section, units: Units) -> list[str]:
    lines = []
    for node in section.nodes:
        label = (f"{node.index} {node.op}", within_layer(node.module), results(node), units.all(node.cost))
        lines.append(f"{_quoted(f'{step} {node.index}')} [label={_quoted(*filter(None, label))}];")
    if section.layer is None:
        return lines
    times = f" (x {section.times})" if section.times > 1 else ""
    title = f"label={_quoted(f'layers.{section.numbers}{times}')};"
    head = f"subgraph {_quoted(f'cluster {step} {section.layer}')} {{"
    return [head, *(f"  {line}" for line in (title, *lines)), "}"]


def _edges(step: str, folded: Folded) -> list[str]:
    return [f"{_quoted(f'{step} {edge.source}')} -> {_quoted(f'{step} {edge.target}')};" for edge in folded.edges()]


def _quoted(*lines: str) -> str:
    """A string of Graphviz; in labels a backslash and n end a line."""
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return '"' + "\\n".join(escaped) + '"'
