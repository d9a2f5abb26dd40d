"""What the tensors of a checkpoint are called, and the part of a parameter that each fills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from atb_models.models.config import ModelConfig


class CheckpointTensor(NamedTuple):
    """One tensor of a checkpoint and the part of a parameter that it fills."""

    name: str  # in the checkpoint
    parameter: str  # of the decoder
    role: str  # the part's key, see layers/parameter.py


def beside_name(weight: str, kind: str) -> str:
    """The tensor of a checkpoint, in the internal form, that is beside a quantised weight <linear>.weight.

    kind: its name in `ops.weight.Weight`. The scale and the offset are the weight's, all others the linear map's.
    """
    return f"{weight}_{kind}" if kind in ("scale", "offset") else f"{weight.removesuffix('.weight')}.{kind}"


# Beside a weight of keys or values: static scales of a KV cache of integers, in quantised checkpoints.
KV_SCALES = (".kv_cache_scale", ".kv_cache_offset")


@dataclass(frozen=True)
class TensorNames:
    """How a family calls what all families have. Paths are within a layer, or within an expert or a dense layer."""

    mlp: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    experts: str = "mlp.experts"
    router: str = "mlp.gate.weight"
    router_bias: str = "mlp.gate.e_score_correction_bias"
    shared_experts: str = "mlp.shared_experts"  # their gate has the same name and "_gate"


def attention_tensors(config: ModelConfig, theirs: str, ours: str) -> Iterator[CheckpointTensor]:
    """Of plain attention. theirs, ours: the layer's prefix in the checkpoint and in the decoder."""
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        for role in ("q", "k", "v"):
            yield CheckpointTensor(f"{theirs}.self_attn.{role}_proj.{kind}", f"{ours}.attn.qkv.{kind}", role)
    for kind in ("weight", "bias") if config.o_bias else ("weight",):
        yield CheckpointTensor(f"{theirs}.self_attn.o_proj.{kind}", f"{ours}.attn.o.{kind}", "")
    for role in ("q", "k") if config.qk_norm else ():
        yield CheckpointTensor(f"{theirs}.self_attn.{role}_norm.weight", f"{ours}.attn.qk_norm.{role}.weight", "")


def mlp_tensors(names: TensorNames, theirs: str, ours: str, *, bias: bool = False) -> Iterator[CheckpointTensor]:
    """Of a dense feed-forward."""
    for kind in ("weight", "bias") if bias else ("weight",):
        for role, name in (("gate", names.gate), ("up", names.up)):
            yield CheckpointTensor(f"{theirs}.{name}.{kind}", f"{ours}.gate_up.{kind}", role)
        yield CheckpointTensor(f"{theirs}.{names.down}.{kind}", f"{ours}.down.{kind}", "")


def moe_tensors(config: ModelConfig, names: TensorNames, theirs: str, ours: str) -> Iterator[CheckpointTensor]:
    """Of a mixture-of-experts feed-forward."""
    yield CheckpointTensor(f"{theirs}.{names.router}", f"{ours}.router.weight", "")
    if config.router_bias:
        yield CheckpointTensor(f"{theirs}.{names.router_bias}", f"{ours}.router.bias", "")
    for expert in range(config.num_experts):
        stem = f"{theirs}.{names.experts}.{expert}"
        yield CheckpointTensor(f"{stem}.{names.gate}.weight", f"{ours}.experts.gate_up", f"gate.{expert}")
        yield CheckpointTensor(f"{stem}.{names.up}.weight", f"{ours}.experts.gate_up", f"up.{expert}")
        yield CheckpointTensor(f"{stem}.{names.down}.weight", f"{ours}.experts.down", f"{expert}")
    if config.shared_intermediate_size:
        yield from mlp_tensors(names, f"{theirs}.{names.shared_experts}", f"{ours}.shared")
    if config.shared_expert_gate:
        yield CheckpointTensor(f"{theirs}.{names.shared_experts}_gate.weight", f"{ours}.shared_gate.weight", "")
