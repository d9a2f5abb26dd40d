"""What the families with latent attention (DeepSeek-V2 and later) have in common. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from atb_models.layers.latent_sizes import LatentSizes
from atb_models.models.config import ModelConfig
from atb_models.models.config_fields import Fields, attention_bias
from atb_models.models.config_rope import rope_fields
from atb_models.models.weights.names import CheckpointTensor

if TYPE_CHECKING:
    from atb_models.layers.build import Build
    from atb_models.layers.latent_attention import LatentAttention


# Of fields that config.json may leave out. head_dim says nothing about these heads, whatever its value is; with one
# hidden_size need not be a multiple of the heads.
DEFAULTS: Final = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "head_dim": 64,
}


def latent_fields(fields: Fields) -> dict[str, Any]:
    """The sizes of latent attention, its rotary positions and biases. q_lora_rank null: queries are made of the hidden
    state. num_key_value_heads says nothing about the cache and is not read further."""
    sizes = LatentSizes(
        q_rank=fields.optional_integer("q_lora_rank"),
        kv_rank=fields.integer("kv_lora_rank"),
        nope=fields.integer("qk_nope_head_dim"),
        rotary=fields.integer("qk_rope_head_dim"),
        value=fields.integer("v_head_dim"),
    )
    fields.only("rope_interleave", (None, True))
    return attention_bias(fields) | {
        "latent": sizes,
        "num_key_value_heads": fields.integer("num_attention_heads"),
        "head_dim": sizes.head,
        "rope": rope_fields(fields, sizes.rotary, pairs="adjacent"),
    }


def latent_attention(build: Build, config: ModelConfig, is_moe: bool) -> LatentAttention:
    """The attention of a layer."""
    from atb_models.layers.latent_attention import LatentAttention

    assert config.latent is not None
    scale = config.head_dim**-0.5 * config.rope.score_factor
    heads, bias = config.num_attention_heads, config.o_bias
    return LatentAttention(build, config.hidden_size, heads, config.latent, scale=scale, bias=bias)


def latent_tensors(config: ModelConfig, theirs: str, ours: str) -> Iterator[CheckpointTensor]:
    """The checkpoint's tensors of a layer's attention. theirs, ours: the layer's prefixes."""
    assert config.latent is not None
    if config.latent.q_rank is None:
        linear = {"q_proj": "q"}
    else:
        linear = {"q_a_proj": "q_a", "q_a_layernorm": "q_norm", "q_b_proj": "q"}
    linear |= {"kv_a_proj_with_mqa": "kv_a", "kv_a_layernorm": "kv_norm", "kv_b_proj": "kv_b", "o_proj": "o"}
    biased = ("q_a", "kv_a", "o") if config.o_bias else ()
    for name, module in linear.items():
        for kind in ("weight", "bias") if module in biased else ("weight",):
            yield CheckpointTensor(f"{theirs}.self_attn.{name}.{kind}", f"{ours}.attn.{module}.{kind}", "")
