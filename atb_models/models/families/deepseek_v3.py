"""DeepSeek-V3 and R1, and Moonlight: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models import latent
from atb_models.models.config_fields import Fields
from atb_models.models.families import deepseek
from atb_models.models.family import Family

# The turns of the published chat template, without tools and reasoning.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


# Of the published configuration class, for fields that config.json may leave out.
DEFAULTS = {
    "first_k_dense_replace": 3,
    "n_group": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "topk_group": 4,
}


def parse_config(fields: Fields) -> dict[str, Any]:
    """Latent attention; experts by sigmoid and a bias, from the groups whose two best are best, with weights that are
    scaled last. Layers that predict further tokens are left out."""
    fields.choice("scoring_func", ("sigmoid",), "sigmoid")
    fields.choice("topk_method", ("noaux_tc",), "noaux_tc")
    fields.integer("n_routed_experts")
    values = latent.latent_fields(fields) | deepseek.expert_fields(fields)
    return values | {
        "router_score": "sigmoid",
        "router_bias": True,
        "expert_groups": fields.integer("n_group"),
        "top_expert_groups": fields.integer("topk_group"),
        "expert_group_score": "top2",
        "routed_scaling_factor": fields.number("routed_scaling_factor"),
        "extra_layers": fields.integer("num_nextn_predict_layers", 0, minimum=0),
    }


FAMILY = Family(
    parse_config,
    CHAT_TEMPLATE,
    defaults=latent.DEFAULTS | DEFAULTS,
    attention=latent.latent_attention,
    attention_tensors=latent.latent_tensors,
)
