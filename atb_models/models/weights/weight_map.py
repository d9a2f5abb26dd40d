"""Which checkpoint tensor fills which part of which parameter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from atb_models.models.config import ModelConfig
from atb_models.models.family import FAMILIES


class Weight(NamedTuple):
    """One tensor of a checkpoint and the part of a parameter that it fills."""

    name: str  # in the checkpoint
    parameter: str  # of the decoder
    role: str  # the part's key, see layers/parameter.py


def weight_names(config: ModelConfig) -> Iterator[Weight]:
    """Every tensor that a checkpoint of this configuration must hold, in the usual order of its files."""
    yield Weight("model.embed_tokens.weight", "embed.weight", "")
    for i in range(config.num_hidden_layers):
        yield from _layer(config, f"model.layers.{i}", f"layers.{i}", is_moe=config.moe_layers[i])
    yield Weight("model.norm.weight", "norm.weight", "")
    if not config.tie_word_embeddings:
        yield Weight("lm_head.weight", "lm_head.weight", "")


def _layer(config: ModelConfig, theirs: str, ours: str, *, is_moe: bool) -> Iterator[Weight]:
    yield Weight(f"{theirs}.input_layernorm.weight", f"{ours}.input_norm.weight", "")
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        for role in ("q", "k", "v"):
            yield Weight(f"{theirs}.self_attn.{role}_proj.{kind}", f"{ours}.attn.qkv.{kind}", role)
    for kind in ("weight", "bias") if config.o_bias else ("weight",):
        yield Weight(f"{theirs}.self_attn.o_proj.{kind}", f"{ours}.attn.o.{kind}", "")
    yield Weight(f"{theirs}.post_attention_layernorm.weight", f"{ours}.post_norm.weight", "")
    if is_moe:
        yield from _experts(config, theirs, ours)
    else:
        yield from _mlp(f"{theirs}.mlp", f"{ours}.mlp")


def _mlp(theirs: str, ours: str) -> Iterator[Weight]:
    for role in ("gate", "up"):
        yield Weight(f"{theirs}.{role}_proj.weight", f"{ours}.gate_up.weight", role)
    yield Weight(f"{theirs}.down_proj.weight", f"{ours}.down.weight", "")


def _experts(config: ModelConfig, theirs: str, ours: str) -> Iterator[Weight]:
    family = FAMILIES[config.model_type]
    yield Weight(f"{theirs}.{family.ROUTER}", f"{ours}.mlp.router.weight", "")
    for expert in range(config.num_experts):
        stem = f"{theirs}.mlp.experts.{expert}"
        yield Weight(f"{stem}.gate_proj.weight", f"{ours}.mlp.experts.gate_up", f"gate.{expert}")
        yield Weight(f"{stem}.up_proj.weight", f"{ours}.mlp.experts.gate_up", f"up.{expert}")
        yield Weight(f"{stem}.down_proj.weight", f"{ours}.mlp.experts.down", f"{expert}")
    if config.shared_intermediate_size:
        yield from _mlp(f"{theirs}.{family.SHARED_EXPERTS}", f"{ours}.mlp.shared")
    if config.shared_expert_gate:
        yield Weight(f"{theirs}.{family.SHARED_EXPERTS}_gate.weight", f"{ours}.mlp.shared_gate.weight", "")
