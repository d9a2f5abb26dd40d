"""Layers of random weights, and steps for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, DecoderLayer, build_model
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.step import StepInput
from tests.records import attention_step
from tests.tiny import FAMILIES, LATER

SIZE, BLOCKS = 16, 140
# (query lengths, KV lengths): decoding, prompts, both with chunks, more rows than a call takes at a time
STEPS = [([1], [1]), ([1, 1, 1], [5, 170, 16]), ([7], [7]), ([3, 1, 40], [30, 61, 40]), ([1, 530], [3, 535])]
# Biases of q, k and v, grouped heads and gated shared experts; biases of all four and no shared experts; MLP and MoE;
# norms of each head, which is wider than its share of the hidden size, and an MLP.
MODELS: list[dict[str, Any]] = [
    FAMILIES["qwen"] | {"num_key_value_heads": 2, "moe_intermediate_size": 30, "shared_expert_intermediate_size": 70},
    FAMILIES["xverse"] | {"attention_bias": True, "num_shared_experts": 0, "num_key_value_heads": 4, "hidden_size": 80},
    FAMILIES["deepseek"] | {"intermediate_size": 90, "moe_intermediate_size": 33},
    LATER["qwen3_moe"] | {"num_key_value_heads": 2, "head_dim": 24, "attention_bias": True, "mlp_only_layers": [1]},
]
Sublayer = Callable[..., tuple[Tensor, Tensor]]


def build_layers(folder: Path, fields: dict[str, Any], build: Build) -> Decoder:
    """A model of random weights, as the bound backend stores them."""
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 2}))
    model = build_model(load_model_config(folder), build)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape)
        integers = parameter.dtype == torch.int8
        parameter.copy_((values * 40).clamp(-128, 127) if integers else values.abs() / 20 + 0.01)
        if not integers and parameter.dim() > 1:
            parameter.copy_(values / 10)
    return model


def random_step(queries: list[int], lengths: list[int]) -> StepInput:
    tables = torch.randperm(BLOCKS, dtype=torch.int32)[: len(lengths) * 34].view(len(lengths), -1)
    places = [(row, i) for row, (q, kv) in enumerate(zip(queries, lengths, strict=True)) for i in range(kv - q, kv)]
    slots = [int(tables[row, i // SIZE]) * SIZE + i % SIZE for row, i in places]
    return attention_step(queries, lengths, tables, torch.tensor(slots, dtype=torch.int32))


def _random(shape: tuple[int, ...]) -> Tensor:
    """Numbers whose integers are not all 0, and scales of about 1."""
    return torch.randn(shape) * (10 if shape[-1] > 1 else 1)


class Layer:
    """A layer with a cache of random content."""

    def __init__(self, model: Decoder, index: int) -> None:
        self.layer: DecoderLayer = model.layers[index]
        self.dtype, self.hidden = self.layer.build.dtype, model.config.hidden_size
        self.half = model.config.head_dim // 2
        planes = self.layer.attn.planes
        self.cache = make_cache(planes, BLOCKS, SIZE, lambda shape, dtype: _random(shape).to(dtype))

    def attend(
        self, sublayer: Sublayer, step: StepInput, x: Tensor | None, residual: Tensor
    ) -> tuple[Tensor, Tensor, LayerCache]:
        cache = LayerCache((name, plane.clone()) for name, plane in self.cache.items())
        angle = torch.arange(len(residual) * self.half).view(len(residual), self.half) / 7
        out = sublayer(x, residual, self.layer._attention_sublayer, angle.cos(), angle.sin(), cache, step)
        return *out, cache

    def feed_forward(self, sublayer: Sublayer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return sublayer(x, residual, self.layer._feed_forward_sublayer, self.layer.mlp.counter_E)


def check_layer(layer: Layer, step: StepInput, *, first: bool) -> None:
    # Rows of x and of the residual stream need not lie one after the other.
    x, residual = torch.randn(2, sum(step.query_lens), layer.hidden + 8).to(layer.dtype)[..., 3:-5]
    given = None if first else x
    *ours, cache = layer.attend(ops.attention_sublayer, step, given, residual)
    *parts, expected = layer.attend(ops.attention_sublayer.reference, step, given, residual)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(ours, parts, strict=True))
    assert all(torch.equal(plane, expected[name]) for name, plane in cache.items())
    assert not torch.equal(cache.k_PSMD, layer.cache.k_PSMD) and ours[0].abs().max() > 0
    moe = hasattr(layer.layer.mlp, "count_tokens")
    results, counts = [], []
    for sublayer in (ops.feed_forward_sublayer, ops.feed_forward_sublayer.reference):
        counts += [layer.layer.mlp.count_tokens()] if moe else []
        results.append(layer.feed_forward(sublayer, x, residual))
    ours, parts = results
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(ours, parts, strict=True))
    assert ours[0].abs().max() > 0
    assert not moe or (torch.equal(*counts) and counts[0].sum() > 0)
