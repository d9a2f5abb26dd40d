"""The recorded graphs of all families: the same decoder, and nothing outside named operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, write_checkpoint

from atb_models import ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.graph.labels import weights_read
from atb_models.models.config_reader import load_model_config
from tests.tiny_latent import LATENT, write_latent


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


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
@pytest.mark.parametrize("family", LATENT)
def test_operations_of_latent_attention(
    family: str, kv_dtype: torch.dtype | None, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 heads on 2 ranks. The cache and the map of latents are shown, and what of them is read is priced."""
    write_latent(tmp_path, family, num_attention_heads=5)
    monkeypatch.delenv("ATB_CPU_ISA")  # see conftest.py
    ops.bind(backend)
    model = meta_model(load_model_config(tmp_path), torch.float16, 2, kv_dtype=kv_dtype)
    graph = trace(model, meta_step([5, 1], [5, 40], 16))
    assert not graph.stray
    attention = [node for node in graph.nodes if node.op == "LatentAttention"]
    assert [node.module for node in attention] == [f"layers.{i}.attn.kv_b" for i in range(3)]
    assert {node.backend for node in attention} == {backend}
    shown = {value.argument: value for value in attention[0].inputs}
    assert shown["kv_b_weight_OZ"].name == "layers.0.attn.kv_b.weight" and shown["kv_b_weight_OZ"].shape == (66, 40)
    writer = next(node for node in graph.nodes if "layers.0.latent_PSD" in node.writes)
    assert writer.op == ("LatentCache" if backend == "reference" else "RopeAndLatentCache")
    assert {name.removeprefix("layers.0.") for name in writer.writes} == {
        f"{name}_PSD" for name in ("latent", "rope_key", *(("latent_scale", "rope_key_scale") if kv_dtype else ()))
    }
    token = 40 + 8 + 8 if kv_dtype else 2 * (40 + 8)
    queries, maps, blocks = 6 * 3 * 20 * 2, 66 * 40 * 2, 2 * 4
    assert attention[0].cost.read == queries + maps + 45 * token + blocks
    weights = sum(parameter.nbytes for parameter in model.parameters()) - model.embed.weight.nbytes
    for layer, tokens in zip(model.layers[1:], (6, 2), strict=True):  # of the last one those that have logits
        experts = layer.mlp.experts.stored_gate_up.nbytes + layer.mlp.experts.stored_down.nbytes
        weights -= experts * (1 - 3 / 8) ** tokens  # that no token chooses
    assert weights_read(graph) == pytest.approx(weights + 6 * 64 * 2)
