"""The planes of the KV cache: what a layer declares is what is allocated, planned and shown."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models import LLM, ops
from atb_models.graph import meta_caches, meta_model, meta_step, trace
from atb_models.layers.attention import Attention
from atb_models.layers.build import Build
from atb_models.limits import Limits
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import plain_attention
from atb_models.models.families import FAMILIES
from atb_models.ops.kv_cache import block_bytes, make_cache
from atb_models.ops.plane import Plane, key_and_value
from atb_models.plan.memory import kv_bytes_per_token, rank_memory

LATENT = Plane("latent", None, 576, torch.float16)
QUANTIZED = (
    Plane("k", 4, 128, torch.int8),
    Plane("v", 4, 128, torch.int8),
    Plane("k_scale", 4, 1, torch.float32),
    Plane("v_scale", 4, 1, torch.float32),
)


def test_planes_of_another_width_and_dtype() -> None:
    ops.bind("reference")
    latent = make_cache([LATENT], 3, 16, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    assert {name: tuple(plane.shape) for name, plane in latent.items()} == {"latent": (3, 16, 576)}
    quantized = make_cache(QUANTIZED, 3, 16, lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    assert quantized.k_PSMD.dtype == torch.int8 and quantized["v_scale"].shape == (3, 16, 4, 1)
    assert sum(plane.nbytes for plane in quantized.values()) == 3 * block_bytes(QUANTIZED, 16)
    assert block_bytes([LATENT], 16) == 16 * 576 * 2


def test_plain_attention_declares_its_ranks_keys_and_values(demo: Path) -> None:
    ops.bind("reference")
    model = meta_model(load_model_config(demo), torch.bfloat16, 8)
    assert model.layers[0].attn.planes == key_and_value(1, 16, torch.bfloat16)
    assert meta_caches(model, 5, 16)[0].v_PSMD.shape == (5, 16, 1, 16)


def test_declared_planes_are_allocated_planned_and_traced(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third plane, which nobody reads: the pool, the plan and the graph have it all the same."""
    extra = Plane("latent", None, 24, torch.float32)
    built = Attention.__init__

    def with_extra(self: Attention, *args: object, **options: object) -> None:
        built(self, *args, **options)  # type: ignore[arg-type]
        self.planes = (*self.planes, extra)

    ops.bind("reference")
    plain = kv_bytes_per_token(meta_model(load_model_config(demo), torch.float16).layers)
    monkeypatch.setattr(Attention, "__init__", with_extra)
    model = meta_model(load_model_config(demo), torch.float16)
    assert kv_bytes_per_token(model.layers) - plain == len(model.layers) * 24 * 4
    graph = trace(model, meta_step([3], [3], 16))
    written = next(node for node in graph.nodes if node.op == "ReshapeAndCache")
    assert "layers.0.latent_PSD" in [value.name for value in written.inputs]
    with LLM(demo, device="cpu", kv_blocks=4, block_size=16) as llm:
        assert llm._runner.caches[0]["latent"].shape == (4, 16, 24)
        held = sum(math.prod(plane.shape) * plane.element_size() for plane in llm._runner.caches[0].values())
        assert held * len(model.layers) == kv_bytes_per_token(model.layers) * 4 * 16


def test_planes_that_only_one_kind_of_layer_has_are_planned(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan looks at one layer of each kind, and there are three mixture-of-experts layers for a dense one."""

    def attention(build: Build, config: ModelConfig, is_moe: bool) -> Attention:
        made = plain_attention(build, config, is_moe)
        if is_moe:
            made.planes = (*made.planes, Plane("latent", None, 24, torch.float32))
        return made

    config, limits = load_model_config(demo), Limits(4, 64, 100, 16)
    plain = rank_memory(config, torch.float16, 1, limits).kv_per_token
    monkeypatch.setitem(FAMILIES, "deepseek", replace(FAMILIES["deepseek"], attention=attention))
    assert rank_memory(config, torch.float16, 1, limits).kv_per_token - plain == 3 * 24 * 4
