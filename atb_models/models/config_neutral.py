"""Fields with which published decoders change their mathematics and which are not supported here.

Each is accepted in the values that change nothing. The names are those of the configuration classes of transformers
(Bloom, Cohere, DBRX, DeepSeek, Falcon, Gemma, GLM, GPT-NeoX, Granite, Grok, Jamba, Llama, MiniCPM, Mixtral, MPT, OLMo,
OPT, Phi, Qwen, StableLM ...), of checkpoints that bring their own code, and of MindIE's quantised weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from atb_models.models.config import ModelConfig

# Switches that are off; 0 counts as false.
_OFF = """
    is_encoder_decoder add_cross_attention attn_uses_sequence_id residual_in_fp32 bidirectional
    use_bidirectional_attention prefix_lm
    use_sliding_window sliding_window use_local_attention attention_window_size window_size attention_chunk_size
    sliding_window_pattern sliding_window_size interleaved_sliding_window global_attn_every_n_layers
    local_attention_window max_local_window use_sparse_attention index_topk
    clip_qkv attn_logit_softcapping attn_logit_softcap attention_logit_softcapping attention_logit_cap
    final_logit_softcapping final_logit_softcap logits_soft_cap output_logit_softcapping router_logit_softcapping
    qk_layernorm qk_norm use_qk_norm use_qk_layernorm qk_ln query_key_norm use_query_key_norm
    attention_sink attn_sink add_swa_attention_sink_bias add_full_attention_sink_bias num_sink_tokens num_meta_tokens
    attn_temperature_tuning use_logn_attn scale_attn_by_inverse_layer_idx attention_value_scale
    alibi use_alibi learned_pos_emb use_dynamic_ntk dynamic_ntk use_ntk_alpha rope_local_base_freq
    rope_interleave rope_interleaved interleaved_rope rotary_interleaved nope_layer_interval no_rope_layer_interval
    no_rope_layers mrope_section
    parallel_attn parallel_attention parallel_residual use_parallel_residual use_parallel_block parallel_block
    parallel_attention_and_mlp new_decoder_architecture
    apply_residual_connection_post_layernorm use_post_norm post_norm sandwich_norm use_sandwich_norm norm_after
    apply_layernorm_1p layernorm_zero_centered_gamma zero_centered_gamma rms_norm_add_unit_offset norm_add_unit_offset
    word_embedding_layernorm embedding_layernorm use_embedding_layernorm scale_embedding scale_embeddings
    normalize_embeddings embed_norm _remove_final_layer_norm
    use_mup mup mup_use_scaling use_mup_scaling
    mlp_bias use_bias use_qkv_bias add_qkv_bias add_bias_linear enable_bias bias lm_head_bias head_bias
    q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim o_lora_rank use_mla
    num_nextn_predict_layers num_mtp_layers mtp_num_layers
    use_cla num_kv_shared_layers kv_shared_layers attention_k_eq_v cross_attention_layers
    router_bias use_router_bias use_expert_bias moe_router_enable_expert_bias use_aux_free_bias
    router_jitter_noise jitter_noise zero_expert_num zero_expert_type expert_capacity expert_choice
    moe_layer_start_index swiglu_limit activation_clip hidden_act_clip
    altup_num_inputs laurel_rank hc_mult num_memory_blocks layer_drop
    use_layer_skip early_exit_layers
    mamba_d_state ssm_state_size linear_num_value_heads hybrid_override_pattern layers_block_type
    layer_group_size full_attention_interval linear_attn_config dual_chunk_attention_config
    quantize quantization quantization_config quant_method quant_config compression_config kv_quant kv_quant_type
    kv_cache_quant fa_quant_type reduce_quant_type quant_type w_bit a_bit use_quant is_quantized
    vision_config audio_config text_config
    """.split()

# Factors of 1.
_ONE = """
    routed_scaling_factor router_scaling_factor moe_router_topk_scaling_factor moe_routed_scaling_factor
    router_topk_scaling_factor expert_scaling_factor route_scale
    n_group topk_group num_expert_group num_expert_groups num_limited_groups n_groups
    logit_scale logits_scaling logits_scale output_multiplier output_multiplier_scale lm_head_multiplier
    embedding_multiplier embedding_multiplier_scale embedding_scale embed_scale emb_scale scale_emb
    residual_multiplier residual_scale residual_scaling key_multiplier attention_in_multiplier attention_out_multiplier
    mup_width_multiplier mup_embedding_multiplier mup_attn_multiplier
    partial_rotary_factor rotary_pct rotary_percent rope_pct rope_percent rope_percentage rope_ratio ntk_alpha
    rope_scaling_factor
    cla_share_factor attn_layer_period expert_layer_period moe_layer_freq decoder_sparse_step moe_layer_interval
    moe_every_n_layers interleave_moe_layer_step
    """.split()

_ABSENT: tuple[Any, ...] = (None, False, 0, "", [], {})

NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    **dict.fromkeys(_OFF, _ABSENT),
    **dict.fromkeys(_ONE, (None, 1)),
    "pruned_heads": _ABSENT,
    "mlp_only_layers": _ABSENT,
    "first_k_dense_replace": _ABSENT,
    "attn_layer_offset": _ABSENT,
    "expert_layer_offset": _ABSENT,
    "scoring_func": (None, "softmax"),
    "score_func": (None, "softmax"),
    **dict.fromkeys(
        ("score_function", "scoring_function", "router_score_function", "router_scoring_func", "moe_score_func",
         "moe_router_score_function", "router_activation", "router_activation_func", "gating_function"),
        (None, "softmax"),
    ),  # fmt: skip
    "router_dtype": (None, "float32", "fp32"),
    "topk_method": (None, "greedy"),
    "position_embedding_type": (None, "rope", "rotary"),
    **dict.fromkeys(("pos_emb_type", "pos_emb", "position_embedding", "pos_encoding"), (None, "rope", "rotary")),
    "use_rope": (None, True),
    "use_rotary": (None, True),
    "rotary": (None, True),
    "scale_attn_weights": (None, True),
    "is_causal": (None, True),
    "causal": (None, True),
    "causal_attention": (None, True),
    "no_bias": (None, True),
    "do_layer_norm_before": (None, True),
    "layer_norm_elementwise_affine": (None, True),
    "pre_norm": (None, True),
    "norm_type": (None, "rms", "rmsnorm", "rms_norm", "RMSNorm"),
    "normalization_type": (None, "rms", "rmsnorm", "rms_norm", "RMSNorm"),
    "layer_norm_type": (None, "rms", "rmsnorm", "rms_norm", "RMSNorm"),
    "attn_type": (None, "multihead_attention"),
    "hidden_activation": (None, "silu", "swish"),
    "activation_function": (None, "silu", "swish"),
    "mlp_hidden_act": (None, "silu", "swish"),
    "ffn_act_fn": (None, {"name": "silu"}),
    "moe_eval_capacity_token_fraction": (None, 1),
    "scale_depth": (None,),
    "attn_config": (None,),
}

# Neutral where it says what the model's own fields say.
SAME: Final[Mapping[str, Callable[[ModelConfig], float]]] = {
    **dict.fromkeys(
        ("attention_multiplier", "softmax_scale", "attn_scale", "attention_scale"),
        lambda config: config.head_dim**-0.5,
    ),
    **dict.fromkeys(("query_pre_attn_scalar", "v_head_dim", "qk_head_dim"), lambda config: config.head_dim),
    "rotary_dim": lambda config: config.rope.width,
    **dict.fromkeys(("dim_model_base", "word_embed_proj_dim", "embedding_size"), lambda config: config.hidden_size),
    **dict.fromkeys(
        ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_eps", "norm_epsilon"),
        lambda config: config.rms_norm_eps,
    ),
    **dict.fromkeys(("rotary_emb_base", "rotary_base", "rope_base"), lambda config: config.rope.theta),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "num_selected_experts", "moe_top_k",
         "moe_topk", "moe_router_topk"),
        lambda config: config.num_experts_per_tok,
    ),  # fmt: skip
    "norm_topk_prob": lambda config: config.norm_topk_prob,
}


def is_same(value: object, wanted: float) -> bool:
    """Whether a number of config.json, or null, stands for the model's own."""
    if value is None:
        return True
    if isinstance(wanted, bool) or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value is wanted
    try:
        return math.isclose(value, wanted, rel_tol=1e-6)
    except OverflowError:  # an integer that no float holds
        return False


def squeezed(word: str) -> str:
    """A word of a configuration as it is compared: "RMSNorm", "rms_norm" and "rms-norm" are one."""
    return re.sub(r"[\W_]+", "", word.lower())
