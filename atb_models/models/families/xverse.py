"""XVERSE-MoE: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, attention_bias
from atb_models.models.family import Family
from atb_models.models.weights.names import TensorNames

# Turns as the family documents them, each answer ended by eos; its tokenizer puts no bos before a text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'user: ' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def parse_config(fields: Fields) -> dict[str, Any]:
    """Experts in every layer, each of intermediate_size; ConfigError for a dense model, which has no num_experts."""
    experts = fields.optional_integer("num_experts", minimum=0)
    if not experts:
        raise fields.fail("num_experts", "as in a dense XVERSE model, but only XVERSE-MoE is supported")
    width, shared = fields.integer("intermediate_size"), fields.optional_integer("num_shared_experts", minimum=0)
    return attention_bias(fields) | {
        "moe_layers": (True,) * fields.integer("num_hidden_layers"),
        "num_experts": experts,
        "num_experts_per_tok": fields.integer("moe_top_k"),
        "moe_intermediate_size": width,
        "shared_intermediate_size": (shared or 0) * width,
        "norm_topk_prob": True,
        "norm_topk_eps": 1e-6,
    }


FAMILY = Family(parse_config, CHAT_TEMPLATE, names=TensorNames(router="mlp.router.weight"))
