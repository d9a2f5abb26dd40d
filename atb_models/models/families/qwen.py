"""Qwen1.5-MoE and Qwen2-MoE: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, sparse_layers, switched_sliding_window
from atb_models.models.family import Family
from atb_models.models.weights.names import TensorNames

# ChatML as the published chat models write it: a conversation without a system text gets theirs.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def parse_config(fields: Fields) -> dict[str, Any]:
    """Routed experts, and one gated shared expert beside them."""
    switched_sliding_window(fields)
    return {
        "qkv_bias": fields.flag("qkv_bias", True),
        "o_bias": False,
        "moe_layers": sparse_layers(fields),
        "num_experts": fields.integer("num_experts"),
        "num_experts_per_tok": fields.integer("num_experts_per_tok"),
        "moe_intermediate_size": fields.integer("moe_intermediate_size"),
        "shared_intermediate_size": fields.integer("shared_expert_intermediate_size"),
        "shared_expert_gate": True,
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
    }


FAMILY = Family(parse_config, CHAT_TEMPLATE, names=TensorNames(shared_experts="mlp.shared_expert"))
