"""DeepSeek-V2: what only this family has."""

from __future__ import annotations

from typing import Any

from atb_models.models import latent
from atb_models.models.config_fields import Fields
from atb_models.models.families import deepseek
from atb_models.models.family import Family


def parse_config(fields: Fields) -> dict[str, Any]:
    """Latent attention; experts by softmax, perhaps from the best groups alone, whose weights are either divided by
    their sum or scaled, as in the published code."""
    fields.choice("scoring_func", ("softmax",), "softmax")
    values = latent.latent_fields(fields) | deepseek.expert_fields(fields)
    scaling = fields.number("routed_scaling_factor", 1.0)
    if fields.choice("topk_method", ("greedy", "group_limited_greedy"), "greedy") == "greedy":
        fields.without_effect |= {"n_group", "topk_group"}
    else:
        values |= {"expert_groups": fields.integer("n_group"), "top_expert_groups": fields.integer("topk_group")}
    return values | {"routed_scaling_factor": 1.0 if values.get("norm_topk_prob") else scaling}


FAMILY = Family(
    parse_config,
    deepseek.CHAT_TEMPLATE,
    defaults=latent.DEFAULTS,
    attention=latent.latent_attention,
    attention_tensors=latent.latent_tensors,
)
