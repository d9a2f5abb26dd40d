"""The recorded graph of a step: what it holds, and that recording leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.graph import OpGraph, meta_model, meta_step
from atb_models.layers.parameter import Build
from atb_models.models.config import load_model_config
from atb_models.models.decoder import build_model
from atb_models.ops.table import recorded


@pytest.fixture
def graph(demo: Path) -> OpGraph:
    ops.bind("cpu")
    model = meta_model(load_model_config(demo), torch.float16, 2)
    return OpGraph.trace(model, meta_step([5, 1], [5, 40], 16))


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
    OpGraph.trace(model, meta_step([3], [3], 16))
    assert [operation.run for operation in ops.operations()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with recorded(lambda op, run, args: run(*args)), pytest.raises(AssertionError, match="open already"):
        with recorded(lambda op, run, args: run(*args)):
            pass


def test_a_model_with_values_is_refused(demo: Path) -> None:
    model = build_model(load_model_config(demo), Build(torch.float32, torch.device("cpu")))
    with pytest.raises(ValueError, match="meta device"):
        OpGraph.trace(model, meta_step([3], [3], 16))
