"""Equal layers shown once: a graph as sections, of which one can stand for a run of layers that do the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import groupby
from operator import add
from typing import Any

from atb_models.graph.graph import Node, OpGraph, Value
from atb_models.ops.cost import Cost

LAYER = re.compile(r"layers\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Section:
    """The nodes of the first of `times` equal layers that follow one another, or nodes outside the layers."""

    nodes: tuple[Node, ...]
    layer: int | None  # None: outside
    times: int = 1

    @property
    def numbers(self) -> str:
        """Its layers, as 0 or 1-27; "" outside."""
        if self.layer is None:
            return ""
        return str(self.layer) if self.times == 1 else f"{self.layer}-{self.layer + self.times - 1}"

    @property
    def cost(self) -> Cost:
        """Of one of its layers."""
        return reduce(add, (node.cost for node in self.nodes), Cost())


@dataclass(frozen=True)
class Edge:
    """Results of one shown node that another reads."""

    source: int
    target: int
    results: tuple[str, ...]  # as %3 or %3.1
    arguments: tuple[str, ...]  # what the target's definition calls them


@dataclass(frozen=True)
class Folded:
    """A graph's sections, and for each node the one that is shown in its place: itself or its like in the first layer.

    So what follows a run of layers reads, as shown, from the first of them, where the last is meant.
    """

    graph: OpGraph
    sections: tuple[Section, ...]
    shown: dict[int, int]

    def name(self, value: Value) -> str:
        """What a node reads, as %<node> or %<node>.<i>; its own name where no node of the step has written it."""
        if value.node is None:
            return value.name
        _, dot, place = value.name.partition(".") if value.name.startswith("%") else ("", "", "")
        return f"%{self.shown[value.node]}{dot}{place}"

    def edges(self) -> Iterator[Edge]:
        """Between shown nodes, one for each pair, in the order of the nodes that read."""
        for section in self.sections:
            for node in section.nodes:
                read: dict[int, list[Value]] = {}
                for value in node.inputs:
                    if value.node is not None:
                        read.setdefault(self.shown[value.node], []).append(value)
                for source, values in sorted(read.items()):
                    results = tuple(dict.fromkeys(map(self.name, values)))
                    yield Edge(source, node.index, results, tuple(value.argument for value in values))


def fold(graph: OpGraph, *, all_layers: bool = False) -> Folded:
    """Join each run of layers that are equal in operations, shapes, costs and edges; `all_layers`: join none."""
    parts = [(layer, tuple(nodes)) for layer, nodes in groupby(graph.nodes, _layer)]
    places = _Places(parts)
    sections: list[Section] = []
    shown: dict[int, int] = {}
    before = None
    for number, (layer, nodes) in enumerate(parts):
        key = None if all_layers or layer is None else [places.key(number, node) for node in nodes]
        if key is not None and key == before and layer == (sections[-1].layer or 0) + sections[-1].times:
            sections[-1] = replace(sections[-1], times=sections[-1].times + 1)
        else:
            sections.append(Section(nodes, layer))
        shown |= {node.index: like.index for node, like in zip(nodes, sections[-1].nodes, strict=True)}
        before = key
    return Folded(graph, tuple(sections), shown)


def within_layer(name: str) -> str:
    """A module's or a tensor's path without the layer's."""
    return LAYER.sub("", name, count=1)


def _layer(node: Node) -> int | None:
    found = LAYER.match(node.module)
    return int(found[1]) if found else None


class _Places:
    """What is compared of two layers: nodes with all that does not depend on where in the graph they are."""

    def __init__(self, parts: list[tuple[int | None, tuple[Node, ...]]]) -> None:
        self._home = {node.index: number for number, (_, nodes) in enumerate(parts) for node in nodes}
        self._nodes = {node.index: node for _, nodes in parts for node in nodes}
        self._bounds = [(nodes[0].index, nodes[-1].index) for _, nodes in parts]

    def key(self, part: int, node: Node) -> tuple[Any, ...]:
        values = [
            (self._origin(part, value.node), _own_name(value), value.argument, value.shape, value.dtype)
            for value in (*node.inputs, *node.outputs)
        ]
        writes = tuple(map(within_layer, node.writes))
        return node.op, within_layer(node.module), values, writes, node.options, node.cost, node.backend

    def _origin(self, part: int, source: int | None) -> tuple[Any, ...] | None:
        """Where a value is from: a place in the same layer, the end or a module of one before, a node outside."""
        if source is None:
            return None
        home, node = self._home[source], self._nodes[source]
        first, last = self._bounds[home]
        if home == part:
            return "here", source - first
        if _layer(node) is None:
            return "outside", source
        place = "end" if source == last else (node.op, within_layer(node.module))
        return "before", part - home, place


def _own_name(value: Value) -> str:
    """What is the same in each layer: of a result which of several it is, else the name within the layer."""
    return value.name.partition(".")[2] if value.name.startswith("%") else within_layer(value.name)
