"""A random model of a shape of shapes.py in Hugging Face layout: config.json, weights in bf16, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from peers.shapes import Dimensions

Shapes = dict[str, tuple[int, ...]]

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
    sizes, std = Dimensions.of(config), config["initializer_range"]
    yield {
        "model.embed_tokens.weight": _random((sizes.vocab, sizes.hidden), std * EMBEDDING_SCALE),
        "model.norm.weight": torch.ones(sizes.hidden, dtype=torch.bfloat16),
        "lm_head.weight": _random((sizes.vocab, sizes.hidden), std * HEAD_SCALE),
    }
    for layer in range(sizes.layers):
        shapes = _attention(sizes) | _feed_forward(sizes, is_dense=layer < sizes.dense_layers)
        tensors = {f"model.layers.{layer}.{name}": _random(shape, std) for name, shape in shapes.items()}
        for norm in "input_layernorm", "post_attention_layernorm":
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(sizes.hidden, dtype=torch.bfloat16)
        yield tensors


def _attention(sizes: Dimensions) -> Shapes:
    shapes: Shapes = {"self_attn.o_proj.weight": (sizes.hidden, sizes.hidden)}
    for name, outputs in ("q", sizes.hidden), ("k", sizes.kv_width), ("v", sizes.kv_width):
        shapes[f"self_attn.{name}_proj.weight"] = (outputs, sizes.hidden)
        if not sizes.is_deepseek:
            shapes[f"self_attn.{name}_proj.bias"] = (outputs,)
    return shapes


def _feed_forward(sizes: Dimensions, *, is_dense: bool) -> Shapes:
    if is_dense:
        return _mlp("mlp", sizes.hidden, sizes.dense_width)
    shapes: Shapes = {"mlp.gate.weight": (sizes.experts, sizes.hidden)}
    if not sizes.is_deepseek:
        shapes["mlp.shared_expert_gate.weight"] = (1, sizes.hidden)
    shapes |= _mlp(f"mlp.{sizes.shared_name}", sizes.hidden, sizes.shared)
    for expert in range(sizes.experts):
        shapes |= _mlp(f"mlp.experts.{expert}", sizes.hidden, sizes.width)
    return shapes


def _mlp(stem: str, hidden: int, width: int) -> Shapes:
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
