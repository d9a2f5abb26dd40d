"""Tiny random checkpoints in Hugging Face layout, with any variation of their configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

COMMON: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.1,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 256,
}
DEEPSEEK: dict[str, Any] = COMMON | {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "intermediate_size": 96,
    "model_type": "deepseek",
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 3,
    "rope_theta": 10000.0,
    "scoring_func": "softmax",
}
QWEN: dict[str, Any] = COMMON | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "intermediate_size": 96,
    "max_window_layers": 2,
    "mlp_only_layers": [],
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 32,
    "norm_topk_prob": False,
    "num_experts": 9,
    "num_experts_per_tok": 4,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 80,
    "sliding_window": 128,
    "use_sliding_window": False,
}
XVERSE: dict[str, Any] = COMMON | {
    "architectures": ["XverseForCausalLM"],
    "attention_bias": False,
    "intermediate_size": 32,
    "model_type": "xverse",
    "moe_top_k": 3,
    "num_experts": 8,
    "num_shared_experts": 2,
    "rope_theta": 500000,
}
FAMILIES = {"deepseek": DEEPSEEK, "qwen": QWEN, "xverse": XVERSE}

LLAMA: dict[str, Any] = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "intermediate_size": 96,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rope_theta": 10000.0,
}
MISTRAL: dict[str, Any] = COMMON | {
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 96,
    "model_type": "mistral",
    "rope_theta": 10000.0,
    "sliding_window": None,
}
QWEN2: dict[str, Any] = COMMON | {
    "architectures": ["Qwen2ForCausalLM"],
    "intermediate_size": 96,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "rope_theta": 1000000.0,
    "sliding_window": 128,
    "use_sliding_window": False,
}
QWEN3: dict[str, Any] = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 16,  # heads * head_dim is not the hidden size
    "model_type": "qwen3",
}
QWEN3_MOE: dict[str, Any] = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_experts": 9,
    "num_experts_per_tok": 4,
}
MIXTRAL: dict[str, Any] = COMMON | {
    "architectures": ["MixtralForCausalLM"],
    "intermediate_size": 32,
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "rope_theta": 1000000.0,
    "router_jitter_noise": 0.1,
    "sliding_window": None,
}
OLMOE: dict[str, Any] = COMMON | {
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "clip_qkv": None,
    "intermediate_size": 32,
    "model_type": "olmoe",
    "norm_topk_prob": False,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "rope_theta": 10000.0,
}
# Families that came later; most tests that run for every family take those above, which have every kind of layer.
LATER = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
    "mixtral": MIXTRAL,
    "olmoe": OLMOE,
}
BIASED = {"qwen2_moe": "qkv", "qwen2": "qkv"}  # whatever fields say
MIXTRAL_NAMES = {
    "mlp.experts.": "block_sparse_moe.experts.", "mlp.gate.": "block_sparse_moe.gate.",
    "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2",
}  # fmt: skip


def shapes_of(config: dict[str, Any]) -> Shapes:
    """Names and shapes as the families' published code has them; written apart from the project's own table."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    width, kv_width = heads * size, (config["num_key_value_heads"] or heads) * size
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    kind = config["model_type"]
    biased = BIASED.get(kind, "qkvo" if config.get("attention_bias") else "")
    normed = {"qwen3": (size, size), "qwen3_moe": (size, size), "olmoe": (width, kv_width)}.get(kind)
    feed_forward = FEED_FORWARDS[kind]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        for role, rows, columns in (
            ("q", width, hidden), ("k", kv_width, hidden), ("v", kv_width, hidden), ("o", hidden, width)
        ):  # fmt: skip
            shapes[f"{layer}.self_attn.{role}_proj.weight"] = (rows, columns)
            if role in biased:
                shapes[f"{layer}.self_attn.{role}_proj.bias"] = (rows,)
        for role, elements in zip("qk", normed or (), strict=False):
            shapes[f"{layer}.self_attn.{role}_norm.weight"] = (elements,)
        shapes |= {f"{layer}.mlp.{name}": shape for name, shape in feed_forward(config, i).items()}
    return {mixtral_name(name): shape for name, shape in shapes.items()} if kind == "mixtral" else shapes


def mixtral_name(name: str) -> str:
    """A tensor as Mixtral calls what others call `name`."""
    for others, theirs in MIXTRAL_NAMES.items():
        name = name.replace(others, theirs)
    return name


def _deepseek(config: dict[str, Any], layer: int) -> Shapes:
    hidden, width, experts = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
    if experts is None or layer < config["first_k_dense_replace"] or layer % config["moe_layer_freq"]:
        return _mlp("", hidden, config["intermediate_size"])
    shared = config["n_shared_experts"]
    return (
        {"gate.weight": (experts, hidden)}
        | _experts(experts, hidden, width)
        | (_mlp("shared_experts.", hidden, width * shared) if shared else {})
    )


def _qwen(config: dict[str, Any], layer: int) -> Shapes:
    hidden, experts = config["hidden_size"], config["num_experts"]
    if layer in config["mlp_only_layers"] or (layer + 1) % config["decoder_sparse_step"]:
        return _mlp("", hidden, config["intermediate_size"])
    return (
        {"gate.weight": (experts, hidden), "shared_expert_gate.weight": (1, hidden)}
        | _experts(experts, hidden, config["moe_intermediate_size"])
        | _mlp("shared_expert.", hidden, config["shared_expert_intermediate_size"])
    )


def _xverse(config: dict[str, Any], layer: int) -> Shapes:
    hidden, width, shared = config["hidden_size"], config["intermediate_size"], config["num_shared_experts"]
    return (
        {"router.weight": (config["num_experts"], hidden)}
        | _experts(config["num_experts"], hidden, width)
        | (_mlp("shared_experts.", hidden, width * shared) if shared else {})
    )


def _dense(config: dict[str, Any], layer: int) -> Shapes:
    shapes = _mlp("", config["hidden_size"], config["intermediate_size"])
    biases = {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items()}
    return shapes | (biases if config.get("mlp_bias") else {})


def _qwen3(config: dict[str, Any], layer: int) -> Shapes:
    if layer in config["mlp_only_layers"] or (layer + 1) % config["decoder_sparse_step"]:
        return _dense(config, layer)
    return _routed(config["num_experts"], config["hidden_size"], config["moe_intermediate_size"])


def _mixtral(config: dict[str, Any], layer: int) -> Shapes:
    return _routed(config["num_local_experts"], config["hidden_size"], config["intermediate_size"])


def _olmoe(config: dict[str, Any], layer: int) -> Shapes:
    return _routed(config["num_experts"], config["hidden_size"], config["intermediate_size"])


def _routed(count: int, hidden: int, width: int) -> Shapes:
    return {"gate.weight": (count, hidden)} | _experts(count, hidden, width)


def _experts(count: int, hidden: int, width: int) -> Shapes:
    return {name: shape for expert in range(count) for name, shape in _mlp(f"experts.{expert}.", hidden, width).items()}


def _mlp(stem: str, hidden: int, width: int) -> Shapes:
    return {
        f"{stem}gate_proj.weight": (width, hidden),
        f"{stem}up_proj.weight": (width, hidden),
        f"{stem}down_proj.weight": (hidden, width),
    }


FEED_FORWARDS: dict[str, Callable[[dict[str, Any], int], Shapes]] = {
    "deepseek": _deepseek, "qwen2_moe": _qwen, "xverse": _xverse, "llama": _dense, "mistral": _dense, "qwen2": _dense,
    "qwen3": _dense, "qwen3_moe": _qwen3, "mixtral": _mixtral, "olmoe": _olmoe,
}  # fmt: skip


def random_tensors(shapes: Shapes, *, std: float, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Normal values, norms around 1; XVERSE's router is float32 whatever the rest."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=generator) * std
        value = value + 1 if name.endswith("norm.weight") else value
        tensors[name] = value if name.endswith("router.weight") else value.to(dtype)
    return tensors


def write_weights(folder: Path, tensors: dict[str, Tensor], layout: str = "single") -> None:
    """`layout`: single, sharded (three safetensors files and an index), bin or bin-sharded."""
    kind = ".bin" if layout.startswith("bin") else ".safetensors"
    stem = "pytorch_model" if kind == ".bin" else "model"
    save: Callable[[dict[str, Tensor], Path], None] = torch.save if kind == ".bin" else save_file
    if not layout.endswith("sharded"):
        save(tensors, folder / f"{stem}{kind}")
        return
    weight_map: dict[str, str] = {}
    names = list(tensors)
    for i in range(3):
        file = f"{stem}-{i + 1:05d}-of-00003{kind}"
        own = names[i::3]
        save({name: tensors[name] for name in own}, folder / file)
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}{kind}.index.json").write_text(json.dumps(index))


def write_checkpoint(
    folder: Path,
    *,
    family: str = "deepseek",
    layout: str = "single",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    generation: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Tensor]:
    """Write config.json, generation_config.json (if given) and weights to `folder` -> the tensors written.

    `fields` replaces fields of the family's tiny configuration.
    """
    config = {**(FAMILIES | LATER)[family], **fields}
    tensors = random_tensors(shapes_of(config), std=config["initializer_range"], dtype=dtype, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    write_weights(folder, tensors, layout)
    return tensors
