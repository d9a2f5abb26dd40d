"""Qwen1.5-MoE and Qwen2-MoE: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields
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
    """Experts in every decoder_sparse_step-th layer that mlp_only_layers does not name; one gated shared expert."""
    dense, step = fields.integers("mlp_only_layers"), fields.integer("decoder_sparse_step", 1)
    layers = range(fields.integer("num_hidden_layers"))
    # use_sliding_window, which alone would bring these to life, is refused when true
    fields.without_effect |= {"sliding_window", "max_window_layers"}
    return {
        "qkv_bias": fields.flag("qkv_bias", True),
        "o_bias": False,
        "moe_layers": tuple(i not in dense and (i + 1) % step == 0 for i in layers),
        "num_experts": fields.integer("num_experts"),
        "num_experts_per_tok": fields.integer("num_experts_per_tok"),
        "moe_intermediate_size": fields.integer("moe_intermediate_size"),
        "shared_intermediate_size": fields.integer("shared_expert_intermediate_size"),
        "shared_expert_gate": True,
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
    }


FAMILY = Family(parse_config, CHAT_TEMPLATE, names=TensorNames(shared_experts="mlp.shared_expert"))
