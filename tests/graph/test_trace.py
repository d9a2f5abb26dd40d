"""The recorded graph of a step: what it holds, and that recording leaves nothing behind."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _len_torch_dispatch_stack

from atb_models import ops
from atb_models.graph import OpGraph, meta_caches, meta_model, meta_step, trace
from atb_models.graph.dot import dot
from atb_models.graph.paths import ModulePaths
from atb_models.layers.build import Build
from atb_models.layers.mlp import Mlp, MoE
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.ops.table import recorded


@pytest.fixture
def graph(demo: Path) -> OpGraph:
    ops.bind("cpu")
    model = meta_model(load_model_config(demo), torch.float16, 2)
    return trace(model, meta_step([5, 1], [5, 40], 16))


def test_counts_of_operations(graph: OpGraph) -> None:
    counts = graph.counts()
    assert counts["AllReduce"] == 8 and counts["AllGather"] == 1  # two a layer, one of the logits
    assert counts["PagedAttention"] == 4 and counts["GroupedMatmul"] == 6
    assert not graph.stray


def test_edges_go_through_views_and_the_cache(graph: OpGraph) -> None:
    by_op = {node.op: node for node in graph.nodes[:8]}
    rope, cache, attention = by_op["Rope"], by_op["ReshapeAndCache"], by_op["PagedAttention"]
    linear = rope.inputs[0].node
    assert linear is not None and graph.nodes[linear].module == "layers.0.attn.qkv"
    assert [value.node for value in cache.inputs[:2]] == [rope.index, linear]  # k is rotated, v is a view of qkv
    assert set(cache.writes) == {"layers.0.k_PSMD", "layers.0.v_PSMD"}
    assert [value.node for value in attention.inputs[1:3]] == [cache.index, cache.index]


def test_norms_are_named_after_the_module_that_owns_their_weight(graph: OpGraph) -> None:
    modules = [node.module for node in graph.nodes if node.op == "AddRmsNorm"]
    assert modules[:3] == ["layers.0.post_norm", "layers.1.input_norm", "layers.1.post_norm"]
    assert modules[-1] == "norm"


def test_a_recording_puts_everything_back(demo: Path) -> None:
    ops.bind("cpu")
    before = [operation.run for operation in ops.operations()]
    model = meta_model(load_model_config(demo), torch.float16)
    trace(model, meta_step([3], [3], 16))
    assert [operation.run for operation in ops.operations()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with recorded(lambda op, run, args: run(*args)), pytest.raises(AssertionError, match="open already"):
        with recorded(lambda op, run, args: run(*args)):
            pass


def test_a_model_with_values_is_refused(demo: Path) -> None:
    model = build_model(load_model_config(demo), Build(torch.float32, torch.device("cpu")))
    with pytest.raises(ValueError, match="meta device"):
        trace(model, meta_step([3], [3], 16))


def tiny(demo: Path, **changes: Any) -> Decoder:
    """The embedded model with other fields, on meta tensors."""
    return meta_model(load_model_config(demo, changes), torch.float16)


def check_edges(graph: OpGraph) -> None:
    """Each value comes from the last earlier node that wrote its name, if there is one."""
    written: dict[str, int] = {}
    for node in graph.nodes:
        assert [value.node for value in node.inputs] == [written.get(value.name) for value in node.inputs]
        assert all(value.name in written for value in node.inputs if value.name.startswith("%"))
        written |= dict.fromkeys([*node.writes, *(value.name for value in node.outputs)], node.index)


def test_a_published_model_has_two_all_reduces_a_layer_and_one_all_gather(shared: Path) -> None:
    config = load_model_config(shared / "headers" / "deepseek-moe-16b-base", log=False)
    ops.bind("reference")
    for query_lens, kv_lens in ([1024], [1024]), ([1] * 16, [1024] * 16):
        step = meta_step(query_lens, kv_lens, 128)
        counts = trace(meta_model(config, torch.float16, 8), step).counts()
        assert counts["AllReduce"] == 56 and counts["AllGather"] == 1
        counts = trace(meta_model(config, torch.float16, 1), step).counts()
        assert "AllReduce" not in counts and "AllGather" not in counts


def test_edges_lead_to_earlier_nodes(graph: OpGraph) -> None:
    check_edges(graph)
    unread = {node.index for node in graph.nodes} - {v.node for node in graph.nodes for v in node.inputs}
    assert unread == {graph.nodes[-1].index}  # all else is there for the logits


def test_an_all_reduce_in_place_stands_between_its_input_and_the_norm(graph: OpGraph) -> None:
    *reduces, of_last_attention, last = (node for node in graph.nodes if node.op == "AllReduce")
    assert graph.nodes[of_last_attention.index + 1].op == "SelectRows"
    for reduce in (*reduces, last):
        before, after = graph.nodes[reduce.index - 1], graph.nodes[reduce.index + 1]
        assert reduce.inputs[0].node == before.index
        assert (after.op, after.inputs[0].node, after.inputs[0].name) == (
            "AddRmsNorm",
            reduce.index,
            f"%{reduce.index}",
        )


def test_json_comes_back_whole(graph: OpGraph) -> None:
    told = json.loads(json.dumps(graph.to_json(), allow_nan=False))
    assert told == graph.to_json()
    assert told["counts"] == graph.counts() and sum(told["counts"].values()) == len(told["nodes"])
    assert (told["query_lens"], told["kv_lens"], told["ranks"], told["dtype"]) == ([5, 1], [5, 40], 2, "float16")
    assert sum(node["flops"] for node in told["nodes"]) == graph.cost.flops > 0
    for place, node in enumerate(told["nodes"]):
        assert node["index"] == place
        assert all(value["node"] is None or value["node"] < place for value in node["inputs"])
    attention = next(node for node in told["nodes"] if node["op"] == "PagedAttention")
    assert attention["options"] == {"query_lens": [5, 1], "kv_lens": [5, 40], "scale": 0.25}


def test_dot_has_every_edge(graph: OpGraph) -> None:
    edges = re.findall(r'"step (\d+)" -> "step (\d+)";', dot({"step": graph}, "model", all_layers=True))
    assert {(int(a), int(b)) for a, b in edges} == {
        (value.node, node.index) for node in graph.nodes for value in node.inputs if value.node is not None
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"n_routed_experts": None},
        {"first_k_dense_replace": 0},
        {"moe_layer_freq": 2},
        {"n_shared_experts": 0},
        {"num_key_value_heads": 2},
        {"attention_bias": True},
        {"tie_word_embeddings": True},
        {"num_hidden_layers": 1},
    ],
)
def test_any_make_of_model(demo: Path, changes: dict[str, Any]) -> None:
    model = tiny(demo, **changes)
    graph = trace(model, meta_step([5, 1], [5, 40], 16))
    counts, moe = graph.counts(), sum(model.config.moe_layers)
    shared = 0 if changes == {"n_shared_experts": 0} else moe
    assert not graph.stray
    check_edges(graph)
    assert counts["PagedAttention"] == len(model.layers)
    assert counts.get("GroupedMatmul", 0) == 2 * moe and counts.get("Add", 0) == shared
    kv_heads = changes.get("num_key_value_heads", 8)
    rope = next(node for node in graph.nodes if node.op == "Rope")
    assert [value.shape for value in rope.outputs] == [(6, 8, 16), (6, kv_heads, 16)]


def test_a_tied_head_reads_the_embedding(demo: Path) -> None:
    graph = trace(tiny(demo, tie_word_embeddings=True), meta_step([5], [5], 16))
    head = next(node for node in graph.nodes if node.module == "lm_head")
    assert (head.op, head.inputs[1].name, head.inputs[1].node) == ("Linear", "embed.weight", None)


def test_a_module_is_not_taken_for_one_whose_name_begins_like_its_own(demo: Path) -> None:
    model = tiny(demo, num_hidden_layers=12, n_routed_experts=None)
    seen: list[str] = []
    with ModulePaths(model) as paths:
        weight = model.layers[10].input_norm.weight
        model.layers[1].register_forward_pre_hook(lambda *_: seen.append(paths.current((weight,))))
        model(meta_step([3], [3], 16), meta_caches(model, 1, 16))
    assert seen == ["layers.1"]


def test_counters_of_experts_have_names(demo: Path) -> None:
    model = tiny(demo)
    moe = model.layers[2].mlp
    assert isinstance(moe, MoE)
    moe.count_tokens()
    graph = trace(model, meta_step([5], [5], 16))
    (node,) = (node for node in graph.nodes if node.op == "CountExpertTokens")
    assert node.writes == ("layers.2.mlp.counter_E",) and not graph.stray


def test_an_operation_whose_body_calls_others_is_one_node(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def composite(x: Tensor, y: Tensor) -> Tensor:
        return ops.select_rows(ops.add.reference(x, y), torch.arange(x.shape[0], device=x.device))

    model, step = tiny(demo), meta_step([5], [5], 16)
    plain = trace(model, step)
    monkeypatch.setattr(ops.add, "run", composite)
    graph = trace(model, step)
    assert graph.counts() == plain.counts() and not graph.stray
    check_edges(graph)


def test_what_a_stray_function_makes_is_no_node_s(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory may be that of a result that is gone, whose name and writer it must not get."""
    forward = Mlp.forward
    monkeypatch.setattr(Mlp, "forward", lambda self, x_TH: forward(self, x_TH + 0))
    graph = trace(tiny(demo), meta_step([5], [5], 16))
    first = [node for node in graph.nodes if node.module.endswith("gate_up") and node.op == "Linear"]
    assert [(node.inputs[0].name, node.inputs[0].node) for node in first] == [("?", None)] * 4
    assert len(graph.stray) == 4


def test_a_forward_that_fails_leaves_nothing_behind(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(x: Tensor, *_: object) -> Tensor:
        raise RuntimeError("broken")

    model, step = tiny(demo), meta_step([3], [3], 16)
    with monkeypatch.context() as patch:
        patch.setattr(ops.swiglu, "run", fail)
        before = [operation.run for operation in ops.operations()]
        with pytest.raises(RuntimeError, match="broken"):
            trace(model, step)
        assert [operation.run for operation in ops.operations()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert _len_torch_dispatch_stack() == 0 and torch.is_grad_enabled()
    assert not trace(model, step).stray


def test_a_trace_is_the_same_in_inference_mode(demo: Path) -> None:
    model, step = tiny(demo), meta_step([300, 1], [300, 40], 16)
    outside = trace(model, step)
    with torch.inference_mode():
        inside = trace(model, step)
    assert inside == outside


def test_a_call_costs_nothing_more_when_nobody_records(demo: Path) -> None:
    ops.bind("cpu")
    bound = [op.run for op in ops.operations()]
    trace(tiny(demo), meta_step([3], [3], 16))
    assert all(op.run is run for op, run in zip(ops.operations(), bound, strict=True))
    calls: list[str] = []

    def profiler(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    x = torch.zeros(2, 2)
    sys.setprofile(profiler)
    try:
        ops.add(x, x)
    finally:
        sys.setprofile(None)
    assert calls == ["__call__", "add"]
