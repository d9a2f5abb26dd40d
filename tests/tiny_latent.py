"""Tiny random checkpoints of the families with latent attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny import COMMON, Shapes, random_tensors, write_weights

_YARN = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64, "type": "yarn",
}  # fmt: skip
DEEPSEEK_V2: dict[str, Any] = COMMON | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "intermediate_size": 96,
    "kv_lora_rank": 40,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 3,
    "num_key_value_heads": 8,
    "q_lora_rank": None,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "rope_scaling": _YARN,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 10,
}
DEEPSEEK_V3: dict[str, Any] = DEEPSEEK_V2 | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "n_group": 4,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 24,
    "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 2,
    "topk_method": "noaux_tc",
}
LATENT = {"deepseek_v2": DEEPSEEK_V2, "deepseek_v3": DEEPSEEK_V3}


def latent_shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes as the published code has them; written apart from the project's own table."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for i in range(config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        for part, of_part in (("self_attn", _attention(config)), ("mlp", _feed_forward(config, i))):
            shapes |= {f"{layer}.{part}.{name}": shape for name, shape in of_part.items()}
        if i >= config["num_hidden_layers"]:
            shapes |= {f"{layer}.enorm.weight": (hidden,), f"{layer}.eh_proj.weight": (hidden, 2 * hidden)}
            shapes |= {f"{layer}.shared_head.head.weight": (vocab, hidden)}
    return shapes


def _attention(config: dict[str, Any]) -> Shapes:
    heads, hidden, rank = config["num_attention_heads"], config["hidden_size"], config["kv_lora_rank"]
    nope, rotary, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    low = config["q_lora_rank"]
    if low is None:
        shapes: Shapes = {"q_proj.weight": (heads * (nope + rotary), hidden)}
    else:
        shapes = {"q_a_proj.weight": (low, hidden), "q_a_layernorm.weight": (low,)}
        shapes["q_b_proj.weight"] = (heads * (nope + rotary), low)
    shapes |= {"kv_a_proj_with_mqa.weight": (rank + rotary, hidden), "kv_a_layernorm.weight": (rank,)}
    shapes |= {"kv_b_proj.weight": (heads * (nope + value), rank), "o_proj.weight": (hidden, heads * value)}
    if config["attention_bias"]:
        shapes |= {"kv_a_proj_with_mqa.bias": (rank + rotary,), "o_proj.bias": (hidden,)}
        shapes |= {} if low is None else {"q_a_proj.bias": (low,)}
    return shapes


def _feed_forward(config: dict[str, Any], layer: int) -> Shapes:
    hidden, width, experts = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    if layer < config["first_k_dense_replace"] or layer % config["moe_layer_freq"]:
        return _mlp("", hidden, config["intermediate_size"])
    shapes: Shapes = {"gate.weight": (experts, hidden)}
    if config["model_type"] == "deepseek_v3":
        shapes["gate.e_score_correction_bias"] = (experts,)
    for expert in range(experts):
        shapes |= _mlp(f"experts.{expert}.", hidden, width)
    shared = config["n_shared_experts"]
    return shapes | (_mlp("shared_experts.", hidden, shared * width) if shared else {})


def _mlp(stem: str, hidden: int, width: int) -> Shapes:
    up = {f"{stem}{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
    return up | {f"{stem}down_proj.weight": (hidden, width)}


def latent_tensors(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, Tensor]:
    """Random weights; a router's bias is float32, and large enough to change choices."""
    tensors = random_tensors(latent_shapes(config), std=config["initializer_range"], dtype=dtype, seed=seed)
    return {
        name: tensor.float() if name.endswith("e_score_correction_bias") else tensor for name, tensor in tensors.items()
    }


def write_latent(folder: Path, family: str, **fields: Any) -> dict[str, Tensor]:
    """A checkpoint of the family with these fields -> its tensors."""
    config = {**LATENT[family], **fields}
    tensors = latent_tensors(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, tensors)
    return tensors
