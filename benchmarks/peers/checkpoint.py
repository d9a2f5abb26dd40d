"""A random model of Qwen1.5-MoE's shape in Hugging Face layout: config.json, weights in bf16, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

# https://huggingface.co/Qwen/Qwen1.5-MoE-A2.7B, config.json; layers and vocabulary are set by flags
QWEN_MOE: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "mlp_only_layers": [],
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
BYTES = 256  # ids that stand for one byte each, which is their number
MERGE = ("q", "z")  # a BPE tokenizer must have a merge; this one is in no text of ours
END = "<|endoftext|>"
# Larger values, so that answers differ by prompt and the greatest logit stands out: both help a comparison.
EMBEDDING_SCALE, HEAD_SCALE = 25, 5


def tokens(vocab_size: int) -> list[str]:
    """The vocabulary by ids: bytes in their printed form, the merge, the end, and words that no text gives."""
    printed = _printed_bytes()
    known = [*printed, "".join(MERGE), END]
    return [*known, *(f"<unused{number}>" for number in range(vocab_size - len(known)))]


def end_id() -> int:
    return BYTES + 1


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    torch.manual_seed(0)
    for number, tensors in enumerate(_parts(config)):
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": where}
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", {**config, "bos_token_id": end_id(), "eos_token_id": end_id()})
    _write_tokenizer(folder, tokens(config["vocab_size"]))


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """The tensors of one file each: of a layer, and of what stands around the layers."""
    hidden, vocab, std = config["hidden_size"], config["vocab_size"], config["initializer_range"]
    kv = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    width = config["moe_intermediate_size"]
    yield {
        "model.embed_tokens.weight": _random((vocab, hidden), std * EMBEDDING_SCALE),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "lm_head.weight": _random((vocab, hidden), std * HEAD_SCALE),
    }
    for layer in range(config["num_hidden_layers"]):
        shapes: dict[str, tuple[int, ...]] = {
            "mlp.gate.weight": (config["num_experts"], hidden),
            "mlp.shared_expert_gate.weight": (1, hidden),
            **_mlp("mlp.shared_expert", hidden, config["shared_expert_intermediate_size"]),
        }
        for name, outputs in ("q", hidden), ("k", kv), ("v", kv):
            shapes |= {f"self_attn.{name}_proj.weight": (outputs, hidden), f"self_attn.{name}_proj.bias": (outputs,)}
        shapes["self_attn.o_proj.weight"] = (hidden, hidden)
        for expert in range(config["num_experts"]):
            shapes |= _mlp(f"mlp.experts.{expert}", hidden, width)
        tensors = {f"model.layers.{layer}.{name}": _random(shape, std) for name, shape in shapes.items()}
        for norm in "input_layernorm", "post_attention_layernorm":
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        yield tensors


def _mlp(stem: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{stem}.gate_proj.weight": (width, hidden),
        f"{stem}.up_proj.weight": (width, hidden),
        f"{stem}.down_proj.weight": (hidden, width),
    }


def _random(shape: tuple[int, ...], std: float) -> Tensor:
    """Even random values of this standard deviation: quicker to make than normal ones, and as good here."""
    bound = std * 3**0.5
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-bound, bound)


def _write_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    end = {"id": end_id(), "content": END, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: number for number, token in enumerate(vocabulary)},
        "merges": [" ".join(MERGE)],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | flags],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "model_max_length": 8192}
    _write_json(folder / "tokenizer_config.json", settings)


def _printed_bytes() -> list[str]:
    """The characters by which byte-level BPE writes the bytes, in the order of the bytes.

    Printable characters of Latin-1 stand for themselves, the other bytes for U+0100 and on, in their order.
    """
    alphabet = set(ByteLevel.alphabet())
    beyond = iter(sorted(letter for letter in alphabet if ord(letter) >= BYTES))
    return [chr(byte) if chr(byte) in alphabet else next(beyond) for byte in range(BYTES)]


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
