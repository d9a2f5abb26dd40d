"""The model's folder as one GGUF file, in a type of llama.cpp's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from safetensors import safe_open
from torch import Tensor

from peers.checkpoint import MERGE, end_id, tokens

ARCHITECTURE = "qwen2moe"
AROUND = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "ffn_gate_shexp.weight": "mlp.shared_expert.gate_proj.weight",
    "ffn_up_shexp.weight": "mlp.shared_expert.up_proj.weight",
    "ffn_down_shexp.weight": "mlp.shared_expert.down_proj.weight",
}
OF_EXPERTS = {
    "ffn_gate_exps.weight": "gate_proj.weight",
    "ffn_up_exps.weight": "up_proj.weight",
    "ffn_down_exps.weight": "down_proj.weight",
}
PRECISE = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")  # float32 in every file, as vectors are


def write_gguf(folder: Path, file: Path, kind: str) -> None:
    """Write the checkpoint in `folder` to `file`. kind: F16, BF16 or another of GGMLQuantizationType.

    Every tensor is read twice, once for its shape, so that no more than the experts of a layer are held at once.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(file, ARCHITECTURE)
    _describe(writer, config, kind)
    for name, shape, _ in _tensors(folder, config, shapes_only=True):
        stored = _stored_as(name, shape, kind)
        bytes_shape = gguf.quant_shape_to_byte_shape(shape, stored)
        writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), int(np.prod(bytes_shape)), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape, tensor in _tensors(folder, config):
        assert tensor is not None
        writer.write_tensor_data(_encode(tensor, _stored_as(name, shape, kind)))
    writer.close()


def _describe(writer: GGUFWriter, config: dict[str, Any], kind: str) -> None:
    writer.add_name("random Qwen-MoE")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    vocabulary = tokens(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    kinds = [TokenType.NORMAL] * len(vocabulary)
    kinds[end_id()] = TokenType.CONTROL
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_bos_token_id(end_id())
    writer.add_eos_token_id(end_id())
    writer.add_add_bos_token(False)


def _tensors(
    folder: Path, config: dict[str, Any], *, shapes_only: bool = False
) -> Iterator[tuple[str, tuple[int, ...], Tensor | None]]:
    """(name, shape, data, None with `shapes_only`) of each tensor, in the order of the file."""
    where = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]

    def read(names: list[str]) -> tuple[tuple[int, ...], Tensor | None]:
        with safe_open(folder / where[names[0]], "pt") as opened:
            shape = opened.get_slice(names[0]).get_shape()
            shape = [len(names), *shape] if len(names) > 1 else [n for n in shape if n > 1]
            data = None if shapes_only else torch.stack([opened.get_tensor(name) for name in names]).reshape(shape)
        return tuple(shape), data

    for name, source in AROUND.items():
        yield name, *read([source])
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        for name, source in OF_LAYER.items():
            yield f"blk.{layer}.{name}", *read([f"{stem}.{source}"])
        for name, source in OF_EXPERTS.items():
            experts = [f"{stem}.mlp.experts.{expert}.{source}" for expert in range(config["num_experts"])]
            yield f"blk.{layer}.{name}", *read(experts)


def _stored_as(name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    precise = len(shape) == 1 or name.endswith(PRECISE)
    return GGMLQuantizationType.F32 if precise else GGMLQuantizationType[kind]


def _encode(tensor: Tensor, stored: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor, as its rows."""
    floats = {
        GGMLQuantizationType.F32: torch.float32,
        GGMLQuantizationType.F16: torch.float16,
        GGMLQuantizationType.BF16: torch.bfloat16,
    }
    if stored in floats:
        return tensor.to(floats[stored]).contiguous().view(torch.uint8).numpy()
    return np.asarray(gguf.quantize(tensor.float().numpy(), stored))
