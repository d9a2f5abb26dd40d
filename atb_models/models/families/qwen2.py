"""Qwen1.5, Qwen2 and Qwen2.5 without experts: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, switched_sliding_window
from atb_models.models.families.qwen import CHAT_TEMPLATE
from atb_models.models.family import Family


def parse_config(fields: Fields) -> dict[str, Any]:
    """Dense layers; queries, keys and values have biases, which no field tells."""
    switched_sliding_window(fields)
    layers = fields.integer("num_hidden_layers")
    return {"qkv_bias": True, "o_bias": False, "moe_layers": (False,) * layers}


FAMILY = Family(parse_config, CHAT_TEMPLATE, defaults={"num_key_value_heads": 32})
