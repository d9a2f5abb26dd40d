"""Columns, rows and lanes of a folded graph's boxes and lines.

Column 0 holds the nodes in their order, one a row. A branch (nodes in a chain that start at one node and end at
another, as the shared experts do) takes column 1 beside the rows between the two. A line to the next row is straight;
one that skips rows runs down a lane to the left of column 0, where no box is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from atb_models.graph.fold import Edge, Folded

LEFT, RIGHT, STRAIGHT = "left", "right", "straight"

Neighbours = dict[int, list[int]]
Place = tuple[int, int]  # column, row
Key = tuple[int, tuple[str, ...]]  # a node and those of its results that go the same way


def places_of(step: Folded, edges: list[Edge]) -> dict[int, Place]:
    """Column and row of each shown node."""
    places: dict[int, Place] = {}
    row = 0
    for section in step.sections:
        branches = _branches([node.index for node in section.nodes], edges)
        aside = {node for branch in branches for node in branch}
        for node in section.nodes:
            if node.index not in aside:
                places[node.index] = (0, row)
                row += 1
        for branch, source in branches.items():
            places |= {node: (1, places[source][1] + 1 + i) for i, node in enumerate(branch)}
    return places


def _branches(nodes: list[int], edges: list[Edge]) -> dict[tuple[int, ...], int]:
    """Chains of a section that fit beside it, each with the node they start from.

    There must be rows enough between the two ends of a chain, and no other chain's. Those that start first come first.
    """
    sources, targets = defaultdict(list), defaultdict(list)
    for edge in edges:
        sources[edge.target].append(edge.source)
        targets[edge.source].append(edge.target)
    found: dict[tuple[int, ...], int] = {}
    used: set[int] = set()
    main = list(nodes)
    for chain in sorted(_chains(nodes, sources, targets), key=lambda chain: sources[chain[0]][0]):
        source, target = sources[chain[0]][0], targets[chain[-1]][0]
        rest = [node for node in main if node not in chain]
        if source in rest and target in rest and set(chain) <= set(main) - used:
            between = set(rest[rest.index(source) + 1 : rest.index(target)])
            if len(between) >= len(chain) and not between & used:
                found[chain] = source
                used |= between
                main = rest
    return found


def _chains(nodes: Iterable[int], sources: Neighbours, targets: Neighbours) -> Iterable[tuple[int, ...]]:
    """The longest from each node on: every node of a chain reads one node and is read by one."""
    for start in nodes:
        chain = [start]
        while len(targets[chain[-1]]) == 1 and len(sources[targets[chain[-1]][0]]) == 1:
            chain.append(targets[chain[-1]][0])
        if len(sources[start]) == 1 and len(targets[chain[-1]]) == 1:
            yield tuple(chain)


def line_key(edge: Edge) -> Key:
    """The same for edges that share a line: the same results of one node on their way to several."""
    return edge.source, edge.results


def side(edge: Edge, places: dict[int, Place]) -> str:
    """Of column 0's boxes where it meets them: by a lane, to or from a branch, or straight down."""
    (column, row), (to_column, to_row) = places[edge.source], places[edge.target]
    if column != to_column:
        return RIGHT
    return LEFT if column == 0 and to_row > row + 1 else STRAIGHT


def lanes_of(edges: list[Edge], places: dict[int, Place]) -> dict[Key, int]:
    """The lane of each line that needs one, 0 the innermost: the shorter the line, the further inside."""
    spans: dict[Key, tuple[int, int]] = {}
    for edge in edges:
        if side(edge, places) == LEFT:
            first, last = places[edge.source][1], places[edge.target][1]
            spans[line_key(edge)] = first, max(last, spans.get(line_key(edge), (0, 0))[1])
    taken: list[list[tuple[int, int]]] = []
    lanes: dict[Key, int] = {}
    for key, (first, last) in sorted(spans.items(), key=lambda item: (item[1][1] - item[1][0], item[1])):
        free = (n for n, lane in enumerate(taken) if all(last < start or end < first for start, end in lane))
        lanes[key] = next(free, len(taken))
        if lanes[key] == len(taken):
            taken.append([])
        taken[lanes[key]].append((first, last))
    return lanes
