"""OLMoE: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, attention_bias
from atb_models.models.family import Family

# As the published instruction models write it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def parse_config(fields: Fields) -> dict[str, Any]:
    """Experts of intermediate_size in every layer; queries and keys are normed over all heads, then bounded."""
    clip = None if fields.get("clip_qkv") is None else fields.number("clip_qkv")
    return attention_bias(fields) | {
        "qk_norm": "wide",
        "clip_qkv": clip,
        "moe_layers": (True,) * fields.integer("num_hidden_layers"),
        "num_experts": fields.integer("num_experts"),
        "num_experts_per_tok": fields.integer("num_experts_per_tok"),
        "moe_intermediate_size": fields.integer("intermediate_size"),
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
    }


FAMILY = Family(
    parse_config,
    CHAT_TEMPLATE,
    defaults={"num_experts": 64, "num_experts_per_tok": 8, "rms_norm_eps": 1e-5, "eos_token_id": 50279},
)
