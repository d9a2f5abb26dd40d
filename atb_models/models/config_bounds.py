"""How large the numbers of config.json may be. Checked before anything is made whose size depends on them.

Sizes are bounded by the largest published decoder and eight times as much, rounded up to a power of two: beyond that a
number is damage or a joke, and a table of its layers or experts would fill the memory before anybody looked at it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# What no table names: 32-bit integers hold token ids, positions and counts on every backend.
MOST_INTEGER: Final = 2**31 - 1
# Entries of a list, such as ids that end an answer, or layers without experts.
MOST_ITEMS: Final = 4096
# Layers times experts of a layer: each is three tensors of a checkpoint. Kimi K2 has 60 times 384.
MOST_EXPERTS: Final = 1 << 16

_LAYERS = 1 << 10  # Llama 3.1 405B: 126
_HIDDEN = 1 << 18  # Nemotron-4 340B: 18,432
_WIDTH = 1 << 20  # of a feed-forward; Nemotron-4 340B: 73,728
_HEADS = 1 << 10  # Llama 3.1 405B and DeepSeek-V3: 128
_HEAD = 1 << 11  # values of a head; Gemma: 256
_LATENT = 1 << 14  # DeepSeek-V3: 1536
_EXPERTS = 1 << 12  # of a layer; DeepSeek-V3 256, Kimi K2 384, Qwen3-Next 512
_SHARED = 1 << 10  # experts that every token takes; published: 4 at most

MOST: Final[dict[str, int]] = {
    "num_hidden_layers": _LAYERS,
    "hidden_size": _HIDDEN,
    "intermediate_size": _WIDTH,
    "moe_intermediate_size": _WIDTH,
    "shared_expert_intermediate_size": _WIDTH,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _HEADS,
    "head_dim": _HEAD,
    "q_lora_rank": _LATENT,
    "kv_lora_rank": _LATENT,
    "qk_nope_head_dim": _HEAD,
    "qk_rope_head_dim": _HEAD,
    "v_head_dim": _HEAD,
    "vocab_size": 1 << 21,  # Gemma 3: 262,208
    "max_position_embeddings": 1 << 27,  # Llama 4 Scout: 10,485,760
    "original_max_position_embeddings": 1 << 27,
    "num_experts": _EXPERTS,
    "n_routed_experts": _EXPERTS,
    "num_local_experts": _EXPERTS,
    "num_experts_per_tok": _EXPERTS,
    "n_group": _EXPERTS,
    "topk_group": _EXPERTS,
    "num_nextn_predict_layers": _LAYERS,  # published: 1
    "moe_top_k": _EXPERTS,
    "n_shared_experts": _SHARED,
    "num_shared_experts": _SHARED,
}


class Range(NamedTuple):
    """From `low` to `high`, both allowed."""

    low: float
    high: float


# Beyond these a model computes nothing that depends on its input.
RANGES: Final[dict[str, Range]] = {
    # added to a mean square of float32 numbers, which ends at 1e-38; published: 1e-12 to 1e-3
    "rms_norm_eps": Range(1e-30, 0.1),
    # the wave length of the slowest rotation over that of the fastest; published: 1e4 to 1e10
    "rope_theta": Range(1.0, 1e15),
    # of positions; published: 2 to 128. Below 1 positions would be spread apart
    "factor": Range(1.0, 1e6),
    # of turns within the trained positions; published: 1 to 32
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"), Range(1e-3, 1e6)),
    # of cos and sin, and what these follow from; published: 0.7 to 1.4
    **dict.fromkeys(("mscale", "mscale_all_dim"), Range(0.0, 100.0)),
    "attention_factor": Range(1e-3, 1e3),
    # the standard deviation of random weights; published: 0.002 to 0.1
    "initializer_range": Range(0.0, 100.0),
}
