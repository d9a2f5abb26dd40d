"""How a graph is shown: folded by layer, as a table, for Graphviz, as a drawing."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from atb_models import ops
from atb_models.graph import OpGraph, Value, meta_model, meta_step, trace
from atb_models.graph.dot import dot
from atb_models.graph.fold import Folded, fold
from atb_models.graph.graph import Node
from atb_models.graph.labels import Units, figure, results, step_title, subject_title, weights_read
from atb_models.graph.layout import BOX_HEIGHT, BOX_WIDTH, Drawing, lay_out
from atb_models.graph.svg import KIND_OF, KINDS, svg
from atb_models.graph.text import text
from atb_models.models.config_reader import load_model_config
from atb_models.ops.cost import Cost

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", params=[1, 8])
def graphs(request: pytest.FixtureRequest, demo: Path) -> dict[str, OpGraph]:
    ops.bind("cpu")
    model = meta_model(load_model_config(demo, log=False), torch.float16, request.param)
    steps = {"prefill": meta_step([300], [300], 128), "decode": meta_step([1] * 3, [70, 80, 90], 128)}
    return {name: trace(model, step) for name, step in steps.items()}


def rows_of(table: str) -> list[str]:
    return [line for line in table.splitlines() if re.match(r" *\d+ [A-Z]", line)]


def test_equal_layers_are_one_section(graphs: dict[str, OpGraph]) -> None:
    """In a prefill the feed-forward of the last layer takes the last token alone."""
    layers = {"prefill": [("1-2", 2), ("3", 1)], "decode": [("1-3", 3)]}
    for name, graph in graphs.items():
        sections = [(section.numbers, section.times) for section in fold(graph).sections]
        assert sections == [("", 1), ("0", 1), *layers[name], ("", 1)]


def test_sections_hold_every_call_and_cost(graphs: dict[str, OpGraph]) -> None:
    for graph in graphs.values():
        sections = fold(graph).sections
        calls: Counter[str] = Counter()
        total = Cost()
        for section in sections:
            for node in section.nodes:
                calls[node.op] += section.times
            total += section.cost * section.times
        assert calls == graph.counts()
        for name in ("flops", "read", "written", "sent"):
            assert getattr(total, name) == pytest.approx(getattr(graph.cost, name), rel=1e-12)


def change_shape(node: Node) -> Node:
    value = node.outputs[0]
    return replace(node, outputs=(replace(value, shape=(*value.shape, 1)), *node.outputs[1:]))


def change_edge(node: Node) -> Node:
    value = node.inputs[0]
    return replace(node, inputs=(replace(value, node=(value.node or 0) - 1), *node.inputs[1:]))


CHANGES: dict[str, Callable[[Node], Node]] = {
    "operation": lambda node: replace(node, op="Other"),
    "module": lambda node: replace(node, module=node.module + ".x"),
    "shape": change_shape,
    "edge": change_edge,
    "cost": lambda node: replace(node, cost=node.cost * 2),
    "options": lambda node: replace(node, options=node.options | {"x": 1}),
    "backend": lambda node: replace(node, backend="other"),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_layer_that_differs_is_a_section_of_its_own(graphs: dict[str, OpGraph], changed: str) -> None:
    graph = graphs["prefill"]
    place = next(node.index for node in graph.nodes if node.module == "layers.2.attn.o")
    nodes = [CHANGES[changed](node) if node.index == place else node for node in graph.nodes]
    sections = fold(replace(graph, nodes=tuple(nodes))).sections
    assert [section.numbers for section in sections] == ["", "0", "1", "2", "3", ""]


def test_all_layers_folds_nothing(graphs: dict[str, OpGraph]) -> None:
    for graph in graphs.values():
        folded = fold(graph, all_layers=True)
        assert [node for section in folded.sections for node in section.nodes] == list(graph.nodes)
        assert all(key == value for key, value in folded.shown.items())


def test_edges_name_what_is_shown(graphs: dict[str, OpGraph]) -> None:
    """What follows the layers reads the last one's results, shown as those of the first of its run."""
    folded = fold(graphs["decode"])
    shown = {node.index: node for section in folded.sections for node in section.nodes}
    norm = next(node for node in shown.values() if node.module == "norm")
    sources = [edge.source for edge in folded.edges() if edge.target == norm.index]
    assert {shown[source].module for source in sources} <= {"layers.1", "layers.1.mlp", "layers.1.post_norm"}
    assert len(sources) == 2
    read = {(edge.source, edge.target): edge for edge in folded.edges()}
    rope = next(node for node in shown.values() if node.op == "Rope" and node.module == "layers.1.attn")
    assert read[0, rope.index].results == ("%0.0", "%0.1")
    assert read[0, rope.index].arguments == ("cos_TD", "sin_TD")
    assert all(edge.source in shown and edge.target in shown for edge in folded.edges())


def test_table_names_every_shown_node_once(graphs: dict[str, OpGraph]) -> None:
    table = text(graphs, "demo", all_layers=False)
    expected = [str(n.index) for graph in graphs.values() for s in fold(graph).sections for n in s.nodes]
    assert [row.split()[0] for row in rows_of(table)] == expected
    assert table.isascii()
    assert "layers.1-3 x 3: each " in table and "prefill: 300 tokens of 1 sequence, KV 300" in table
    assert "decode: 3 tokens of 3 sequences, KV 70 to 90 each" in table
    assert len(re.findall("^(?:total|peak of activations): ", table, re.MULTILINE)) == 4


def test_table_of_all_layers_has_a_line_for_each_node(graphs: dict[str, OpGraph]) -> None:
    table = text(graphs, "demo", all_layers=True)
    assert [row.split()[:2] for row in rows_of(table)] == [
        [str(node.index), node.op] for graph in graphs.values() for node in graph.nodes
    ]


def test_a_row_says_what_the_node_says(graphs: dict[str, OpGraph]) -> None:
    graph = graphs["prefill"]
    experts = next(node for node in graph.nodes if node.op == "MoeInitRouting")
    row = next(row for row in rows_of(text(graphs, "demo", all_layers=False)) if f" {experts.op} " in row)
    assert row.endswith("1200x128 fp16, 300x4 int64, 16 int64")
    linear = next(node for node in graph.nodes if node.module == "layers.0.mlp.gate_up")
    cells = rows_of(text(graphs, "demo", all_layers=False))[linear.index].split()
    scale = 1e6 if graph.size == 1 else 1e3  # of 8 ranks none moves 1 MB here
    flops, moved = figure(linear.cost.flops / 1e6), figure(linear.cost.moved / scale)
    width = 768 // graph.size
    assert cells[1:5] == ["Linear", "mlp.gate_up", flops, moved]
    assert cells[6:] == ["cpu", f"%{linear.index - 1}.0", "->", f"300x{width}", "fp16"]


def test_work_outside_operations_is_warned_of(graphs: dict[str, OpGraph]) -> None:
    stray = {"prefill": replace(graphs["prefill"], stray=("aten.add.Tensor in layers.0",) * 2)}
    warnings = [line for line in text(stray, "x", all_layers=False).splitlines() if line.startswith("warning")]
    assert warnings == ["warning: outside the operations: aten.add.Tensor in layers.0"]


def test_weights_read_are_the_parameters(demo: Path) -> None:
    """With 2,000 tokens every expert is touched; of the embedding the rows of the tokens are read."""
    model = meta_model(load_model_config(demo, log=False), torch.float16)
    every = torch.empty(2000, dtype=torch.int32, device="meta")
    graph = trace(model, replace(meta_step([2000], [2000], 128), logits_rows_L=every))
    embedding = model.get_parameter("embed.weight")
    expected = sum(p.nbytes for p in model.parameters()) - embedding.nbytes + 2000 * embedding.shape[1] * 2
    assert weights_read(graph) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "-"), (0.0004, "<0.001"), (0.25, "0.250"), (1.2345, "1.234"), (56.781, "56.78"), (1234.6, "1235")],
)
def test_figures(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_units_follow_the_largest_node(graphs: dict[str, OpGraph]) -> None:
    graph = graphs["prefill"]
    nodes = (replace(graph.nodes[0], cost=Cost(2e9, 3e6, 0, 1500)), replace(graph.nodes[1], cost=Cost(1e6)))
    units = Units.of(replace(graph, nodes=nodes))
    assert units.all(nodes[0].cost) == "2.000 GFLOP, 3.000 MB, 1.500 KB sent"
    assert units.all(nodes[1].cost) == "0.001 GFLOP"


def test_dot_declares_what_it_joins(graphs: dict[str, OpGraph]) -> None:
    for all_layers in (False, True):
        source = dot(graphs, 'a "quoted\\ name"', all_layers=all_layers)
        declared = re.findall(r'^ *("\w+ \d+") \[label="[^"]+"\];$', source, re.MULTILINE)
        ends = re.findall(r'^ *("\w+ \d+") -> ("\w+ \d+");$', source, re.MULTILINE)
        folded = [fold(graph, all_layers=all_layers) for graph in graphs.values()]
        assert len(declared) == len(set(declared)) == sum(len(s.nodes) for f in folded for s in f.sections)
        assert len(ends) == sum(len(list(f.edges())) for f in folded)
        assert {end for pair in ends for end in pair} <= set(declared)
        assert source.count("{") == source.count("}") and source.startswith("digraph")
        assert 'label="a \\"quoted\\\\ name\\", fp16' in source


def drawing(graphs: dict[str, OpGraph], model: str = "demo") -> ElementTree.Element:
    return ElementTree.fromstring(svg(graphs, model, all_layers=False))


def test_drawing_holds_every_shown_node_once(graphs: dict[str, OpGraph]) -> None:
    root = drawing(graphs)
    for name, graph in graphs.items():
        (step,) = (group for group in root.iter(f"{SVG}g") if group.get("id") == name)
        titles = [group.findtext(f"{SVG}title") or "" for group in step.iter(f"{SVG}g") if group.get("class") == "node"]
        shown = [node for section in fold(graph).sections for node in section.nodes]
        assert [title.split()[:2] for title in titles] == [[str(node.index), node.op] for node in shown]
        words = [element.text for element in step.iter(f"{SVG}text")]
        equal = {"prefill": "layers 1-2 (x 2)", "decode": "layers 1-3 (x 3)"}
        assert step_title(name, graph) in words and equal[name] in words
        assert all(results(node) in words for node in shown)


def test_text_stays_in_its_box(graphs: dict[str, OpGraph]) -> None:
    """By 0.61 of the size for a character, which DejaVu Sans Mono, the widest of the fonts, has."""
    boxes = [group for group in drawing(graphs).iter(f"{SVG}g") if group.get("class") == "node"]
    for box in boxes:
        rect = box.find(f"{SVG}rect")
        assert rect is not None
        left, top = float(rect.get("x", "")), float(rect.get("y", ""))
        rows: dict[str, list[tuple[float, float]]] = {}
        for element in box.iter(f"{SVG}text"):
            width = len(element.text or "") * float(element.get("font-size", "")) * 0.61
            x, y = float(element.get("x", "")), float(element.get("y", ""))
            start = x - width if element.get("text-anchor") == "end" else x
            assert left < start and start + width < left + BOX_WIDTH and top < y < top + BOX_HEIGHT
            rows.setdefault(element.get("y", ""), []).append((start, start + width))
        for spans in rows.values():
            spans.sort()
            assert all(stop < start for (_, stop), (start, _) in zip(spans, spans[1:], strict=False))


def test_long_and_odd_names_are_cut_and_escaped(graphs: dict[str, OpGraph]) -> None:
    graph = graphs["prefill"]
    nodes = tuple(replace(node, module=node.module + ".<very&long>" * 9) for node in graph.nodes)
    long = {"prefill": replace(graph, nodes=nodes)}
    test_text_stays_in_its_box(long)
    root = drawing(long, "\u6a21\u578b\x01 <&> " + "x" * 500)
    assert (root.findtext(f"{SVG}text") or "").startswith("\u6a21\u578b? <&> x")
    assert subject_title("a\nb", graph).startswith("a?b, fp16")


def test_no_line_runs_through_a_box(graphs: dict[str, OpGraph]) -> None:
    for graph in graphs.values():
        for all_layers in (False, True):
            folded = fold(graph, all_layers=all_layers)
            check_layout(folded, lay_out(folded))


def random_graph(graph: OpGraph, seed: int) -> OpGraph:
    """30 nodes in three layers, each of which reads one to three others before it."""
    draw = random.Random(seed)
    nodes = []
    for index in range(30):
        sources = sorted({draw.randrange(max(0, index - 8), index) for _ in range(draw.choice((1, 1, 2, 3))) if index})
        inputs = tuple(Value(f"%{source}", "x_TH", (1,), torch.float16, source) for source in sources)
        outputs = (Value(f"%{index}", "", (1,), torch.float16, index),)
        module = f"layers.{index // 10}"
        nodes.append(replace(graph.nodes[0], index=index, module=module, inputs=inputs, outputs=outputs))
    return replace(graph, nodes=tuple(nodes))


def test_no_line_of_any_graph_runs_through_a_box(graphs: dict[str, OpGraph]) -> None:
    branches = 0
    for seed in range(40):
        folded = fold(random_graph(graphs["prefill"], seed))
        layout = lay_out(folded)
        check_layout(folded, layout)
        branches += len({x for x, _ in layout.boxes.values()}) > 1
    assert branches > 5


def check_layout(folded: Folded, layout: Drawing) -> None:
    corners = list(layout.boxes.values())
    assert len(layout.lines) == len(list(folded.edges()))
    for number, (x, y) in enumerate(corners):
        assert 0 <= x <= layout.width - BOX_WIDTH and 0 <= y <= layout.height - BOX_HEIGHT
        for other_x, other_y in corners[:number]:
            assert abs(x - other_x) >= BOX_WIDTH or abs(y - other_y) >= BOX_HEIGHT
    for line in layout.lines:
        for (x1, y1), (x2, y2) in zip(line.points, line.points[1:], strict=False):
            assert x1 == x2 or y1 == y2
            for x, y in corners:
                beside = max(x1, x2) <= x or min(x1, x2) >= x + BOX_WIDTH
                assert beside or max(y1, y2) <= y or min(y1, y2) >= y + BOX_HEIGHT


def test_shared_experts_are_a_branch_and_lanes_are_apart(graphs: dict[str, OpGraph]) -> None:
    shared = [f".mlp.shared{part}" for part in ("", ".down", ".gate_up")]
    wanted = [f"layers.1{part}" for part in shared]
    last = ["layers.3", *(f"layers.3{part}" for part in shared)]  # the residual stream's rows beside the attention
    for name, graph in graphs.items():
        folded = fold(graph)
        layout = lay_out(folded)
        main = min(x for x, _ in layout.boxes.values())
        aside = {node for node, (x, _) in layout.boxes.items() if x != main}
        modules = sorted(graph.nodes[node].module for node in aside)
        assert modules == (wanted + last if name == "prefill" else wanted)
        upright: dict[float, list[tuple[float, float, int]]] = {}
        for edge, line in zip(folded.edges(), layout.lines, strict=True):
            if line.arguments:
                (x, start), (_, stop) = line.points[1:3]
                upright.setdefault(x, []).append((start, stop, edge.source))
        for spans in upright.values():
            for start, stop, source in spans:
                assert all(a >= stop or b <= start or other == source for a, b, other in spans)


def test_every_operation_of_the_kinds_exists() -> None:
    assert KIND_OF.keys() <= {operation.name for operation in ops.operations()}
    assert set(KIND_OF.values()) <= set(KINDS)
