"""Llama, and Mistral without a sliding window: what only these families have."""

from __future__ import annotations

from typing import Any

from atb_models.models.config_fields import Fields, attention_bias, no_sliding_window
from atb_models.models.family import Family

# A system text stands before the question that follows it; Llama 2 begins every question with bos.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_2 = (
    "{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Which of the two a model was trained with shows in its bos.
CHAT_TEMPLATE = "{% if bos_token == '<|begin_of_text|>' %}" + _LLAMA_3 + "{% else %}" + _LLAMA_2 + "{% endif %}"


def parse_config(fields: Fields) -> dict[str, Any]:
    """Dense layers; biases of attention and of the feed-forward where fields say so."""
    layers = fields.integer("num_hidden_layers")
    return attention_bias(fields) | {"mlp_bias": fields.flag("mlp_bias", False), "moe_layers": (False,) * layers}


def parse_mistral_config(fields: Fields) -> dict[str, Any]:
    """Dense layers without biases."""
    no_sliding_window(fields)
    return {"qkv_bias": False, "o_bias": False, "moe_layers": (False,) * fields.integer("num_hidden_layers")}


FAMILY = Family(parse_config, CHAT_TEMPLATE)
MISTRAL_FAMILY = Family(parse_mistral_config, MISTRAL_TEMPLATE, defaults={"num_key_value_heads": 8})
