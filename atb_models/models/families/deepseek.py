"""DeepSeek-MoE v1: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, attention_bias
from atb_models.models.family import Family

# As the published model card writes it: bos, "User: ", "Assistant: " and eos after an answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def parse_config(fields: Fields) -> dict[str, Any]:
    """Biases, experts and the layers that have them; absent fields are the published configuration class's defaults."""
    fields.choice("scoring_func", ("softmax",), "softmax")
    return attention_bias(fields) | expert_fields(fields)


def expert_fields(fields: Fields) -> dict[str, Any]:
    """Experts and the layers that have them."""
    experts = fields.optional_integer("n_routed_experts")
    width = fields.optional_integer("moe_intermediate_size")
    first, step = fields.integer("first_k_dense_replace", 0, minimum=0), fields.integer("moe_layer_freq", 1)
    shared = fields.optional_integer("n_shared_experts", minimum=0) or 0
    top_k = fields.optional_integer("num_experts_per_tok")
    norm_topk_prob = fields.flag("norm_topk_prob", False)
    layers = range(fields.integer("num_hidden_layers"))
    values: dict[str, Any] = {"moe_layers": tuple(experts is not None and i >= first and i % step == 0 for i in layers)}
    if experts is not None:
        width = fields.integer("moe_intermediate_size")
        top_k = fields.integer("num_experts_per_tok") if top_k is None else top_k
        values |= {
            "num_experts": experts,
            "num_experts_per_tok": top_k,
            "moe_intermediate_size": width,
            "shared_intermediate_size": shared * width,
            "norm_topk_prob": norm_topk_prob and top_k > 1,  # one weight is never renormalised
            "norm_topk_eps": 1e-20,
        }
    return values


FAMILY = Family(parse_config, CHAT_TEMPLATE)
