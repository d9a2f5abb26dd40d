"""The recorded graphs of all families: the same decoder, and nothing outside named operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, write_checkpoint

from atb_models import ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.models.config_reader import load_model_config


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_step(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family=family)
    ops.bind("cpu")
    model = meta_model(load_model_config(tmp_path), torch.float16, 2)
    graph = trace(model, meta_step([5, 1], [5, 40], 16))
    counts, moe_layers = graph.counts(), 2 if family == "deepseek" else 3
    assert not graph.stray
    assert counts["AllReduce"] == 6 and counts["AllGather"] == 1  # two a layer, one of the logits
    assert counts["Router"] == counts["MoeFinalizeRouting"] == moe_layers
    assert counts.get("SharedExpertGate", 0) == (moe_layers if family == "qwen" else 0)
    gates = [node.module for node in graph.nodes if node.op == "SharedExpertGate"]
    assert all(module == f"layers.{i}.mlp.shared_gate" for i, module in enumerate(gates))
