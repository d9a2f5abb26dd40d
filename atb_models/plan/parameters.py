"""The number of parameters of a model, counted from the tensors that its checkpoint must hold."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from atb_models.graph import meta_model
from atb_models.layers.parameter import fillings
from atb_models.models.config import ModelConfig
from atb_models.models.quantization import layer_kinds
from atb_models.models.weights.weight_map import checkpoint_tensors
from atb_models.plan.memory import one_of_each_layer

ROUTED_EXPERTS = ".mlp.experts."


class Parameters(NamedTuple):
    """With embedding and head. active: those used for a token, with `num_experts_per_tok` experts a layer."""

    total: int
    active: int


def count_parameters(config: ModelConfig) -> Parameters:
    """The parameters of the whole model, without the padding of shards."""
    kinds = one_of_each_layer(config)
    layers = {f"layers.{i}.": len(alike) for i, alike in enumerate(layer_kinds(config))}
    filled = fillings(meta_model(kinds, torch.float16))
    whole = routed = 0
    for weight in checkpoint_tensors(kinds):
        elements = math.prod(filled[weight.parameter].parts[weight.role].shape)
        elements *= next((times for layer, times in layers.items() if weight.parameter.startswith(layer)), 1)
        if ROUTED_EXPERTS in weight.parameter:
            routed += elements
        else:
            whole += elements
    active = routed * config.num_experts_per_tok // config.num_experts if routed else 0
    return Parameters(whole + routed, whole + active)
