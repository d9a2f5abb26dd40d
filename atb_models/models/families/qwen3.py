"""Qwen3 and Qwen3-MoE: what only these families have."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, attention_bias, sparse_layers, switched_sliding_window
from atb_models.models.family import Family

# ChatML as the published models write it: no system text unless there is one, and an empty thought for an answer that
# is to come without.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def parse_config(fields: Fields) -> dict[str, Any]:
    """Dense layers; each head's query and key is normed."""
    switched_sliding_window(fields)
    layers = fields.integer("num_hidden_layers")
    return attention_bias(fields) | {"qk_norm": "head", "moe_layers": (False,) * layers}


def parse_moe_config(fields: Fields) -> dict[str, Any]:
    """The same attention; routed experts and no shared ones."""
    return parse_config(fields) | {
        "moe_layers": sparse_layers(fields),
        "num_experts": fields.integer("num_experts"),
        "num_experts_per_tok": fields.integer("num_experts_per_tok"),
        "moe_intermediate_size": fields.integer("moe_intermediate_size"),
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
    }


FAMILY = Family(parse_config, CHAT_TEMPLATE, defaults={"num_key_value_heads": 32, "head_dim": 128})
MOE_FAMILY = Family(parse_moe_config, CHAT_TEMPLATE, defaults={"num_key_value_heads": 4})
