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
from peers.shapes import Dimensions

AROUND = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OF_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
OF_QWEN = {f"attn_{name}.bias": f"self_attn.{name}_proj.bias" for name in "qkv"}
OF_QWENS_EXPERTS = {"ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight"}
PARTS = ("gate", "up", "down")
PLAIN = ("token_embd.weight", "output.weight")  # in 16 bits where linear maps have fewer
PRECISE = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")  # float32 in every file, as vectors are
# llama.cpp turns neighbouring pairs of a head's numbers in this architecture, the checkpoint the halves of a head.
TURNED_IN_PAIRS = {"attn_q.weight", "attn_k.weight"}


def write_gguf(folder: Path, file: Path, kind: str) -> None:
    """Write the checkpoint in `folder` to `file`. kind: F16, BF16 or Q8_0, in which linear maps are stored.

    Every tensor is read twice, once for its shape, so that no more than the experts of a layer are held at once.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(file, "deepseek" if Dimensions.of(config).is_deepseek else "qwen2moe")
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
    sizes = Dimensions.of(config)
    writer.add_name("random model")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.dense_width)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(sizes.experts)
    writer.add_expert_used_count(sizes.top_k)
    writer.add_expert_feed_forward_length(sizes.width)
    if sizes.is_deepseek:
        writer.add_rope_dimension_count(sizes.head_size)
        writer.add_leading_dense_block_count(sizes.dense_layers)
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_scale(1.0)
    else:
        writer.add_expert_shared_feed_forward_length(sizes.shared)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    _describe_tokens(writer, config)


def _describe_tokens(writer: GGUFWriter, config: dict[str, Any]) -> None:
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

    sizes = Dimensions.of(config)
    for name, source in AROUND.items():
        yield name, *read([source])
    for layer in range(sizes.layers):
        for name, sources in _names_of_layer(sizes, is_dense=layer < sizes.dense_layers).items():
            shape, data = read([f"model.layers.{layer}.{source}" for source in sources])
            if data is not None and sizes.is_deepseek and name in TURNED_IN_PAIRS:
                data = data.view(-1, 2, sizes.head_size // 2, sizes.hidden).transpose(1, 2).reshape(shape)
            yield f"blk.{layer}.{name}", shape, data


def _names_of_layer(sizes: Dimensions, *, is_dense: bool) -> dict[str, list[str]]:
    """Name in the file -> names in the checkpoint, of all experts where it is a stack of these."""
    single = OF_LAYER | ({} if sizes.is_deepseek else OF_QWEN)
    if is_dense:
        return {name: [source] for name, source in single.items()} | _mlp("", ["mlp"])
    single |= {"ffn_gate_inp.weight": "mlp.gate.weight"} | ({} if sizes.is_deepseek else OF_QWENS_EXPERTS)
    named = {name: [source] for name, source in single.items()} | _mlp("_shexp", [f"mlp.{sizes.shared_name}"])
    return named | _mlp("_exps", [f"mlp.experts.{expert}" for expert in range(sizes.experts)])


def _mlp(suffix: str, stems: list[str]) -> dict[str, list[str]]:
    return {f"ffn_{part}{suffix}.weight": [f"{stem}.{part}_proj.weight" for stem in stems] for part in PARTS}


def _stored_as(name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    if len(shape) == 1 or name.endswith(PRECISE):
        return GGMLQuantizationType.F32
    return GGMLQuantizationType["BF16" if kind == "Q8_0" and name in PLAIN else kind]


def _encode(tensor: Tensor, stored: GGMLQuantizationType) -> np.ndarray:
    """The bytes of a tensor, as its rows."""
    floats = {
        GGMLQuantizationType.F32: torch.float32,
        GGMLQuantizationType.F16: torch.float16,
        GGMLQuantizationType.BF16: torch.bfloat16,
    }
    if stored in floats:
        return tensor.to(floats[stored]).contiguous().view(torch.uint8).numpy()
    matrices = tensor.view(-1, *tensor.shape[-2:])  # one by one, for their floats take memory
    return np.concatenate([gguf.quantize(matrix.float().numpy(), stored) for matrix in matrices])
