"""Mixtral: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, no_sliding_window
from atb_models.models.families.llama import MISTRAL_TEMPLATE
from atb_models.models.family import Family
from atb_models.models.weights.names import TensorNames

NAMES = TensorNames(
    gate="w1",
    up="w3",
    down="w2",
    experts="block_sparse_moe.experts",
    router="block_sparse_moe.gate.weight",
)


def parse_config(fields: Fields) -> dict[str, Any]:
    """Experts of intermediate_size in every layer; the chosen ones' weights always add up to 1."""
    no_sliding_window(fields)
    fields.without_effect.add("router_jitter_noise")  # of the training
    return {
        "qkv_bias": False,
        "o_bias": False,
        "moe_layers": (True,) * fields.integer("num_hidden_layers"),
        "num_experts": fields.integer("num_local_experts"),
        "num_experts_per_tok": fields.integer("num_experts_per_tok"),
        "moe_intermediate_size": fields.integer("intermediate_size"),
        "norm_topk_prob": True,
    }


FAMILY = Family(
    parse_config,
    MISTRAL_TEMPLATE,
    defaults={
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    names=NAMES,
)
