"""What attention and the operators that write its cache demand of a call: see `contracts`."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.npu.soft.demands import HALF, contiguous, need, plain

MASKS = (torch.int8, torch.uint8, torch.bool)
MASK_SIZE = 2048


def npu_scatter_pa_kv_cache(call: SimpleNamespace) -> None:
    plain(call, "compress_lens", "compress_seq_offsets", "seq_lens")
    need(call.cache_mode == "Norm", f"a cache of [P, S, M, D] needs cache_mode Norm, not {call.cache_mode}")
    slots, pairs = call.slot_mapping, ((call.key, call.key_cache), (call.value, call.value_cache))
    contiguous(key=call.key, value=call.value, key_cache=call.key_cache, value_cache=call.value_cache, slots=slots)
    need(slots.dtype in (torch.int32, torch.int64), f"slot_mapping is {slots.dtype}")
    need(slots.dim() == 1, f"slot_mapping {slots.shape}")
    for new, cache in pairs:
        need(new.dim() == 3 and cache.dim() == 4, f"[T, M, D] {new.shape} into [P, S, M, D] {cache.shape}")
        need(new.shape[1:] == cache.shape[2:], f"heads and width of {new.shape} and of the cache {cache.shape}")
        need(new.dtype == cache.dtype, f"{new.dtype} into a cache of {cache.dtype}")
        need(new.shape[0] == slots.shape[0], f"{slots.shape[0]} slots for {new.shape[0]} tokens")


def npu_fused_infer_attention_score(call: SimpleNamespace) -> None:
    """Paged, TND, causal: the only form that is used here."""
    query, key, value, table = call.query, call.key, call.value, call.block_table
    known = {"query", "key", "value", "block_table", "atten_mask", "workspace"}
    plain(call, *(name for name, given in vars(call).items() if isinstance(given, Tensor) and name not in known))
    need(call.input_layout == "TND" and query.dim() == 3, f"layout {call.input_layout}, query {query.shape}")
    need(query.dtype in HALF and query.dtype == key.dtype == value.dtype, f"{query.dtype}, {key.dtype}, {value.dtype}")
    tokens, heads, dim = query.shape
    kv_heads = call.num_key_value_heads or call.num_heads
    need(heads == call.num_heads and heads % kv_heads == 0, f"num_heads {call.num_heads}/{kv_heads} for {query.shape}")
    need(dim == 128, f"head size {dim}: TND takes 128 without rope")
    need(table is not None, "block_table is missing")
    need(table.dtype == torch.int32 and table.dim() == 2, f"block_table {table.dtype} {table.shape}")
    need(key.shape == value.shape and key.dim() == 3, f"a paged cache is [P, S, M * D], not {key.shape}, {value.shape}")
    need(key.shape[1:] == (call.block_size, kv_heads * dim), f"cache {key.shape}, block_size {call.block_size}")
    need(call.block_size in (128, 256, 384, 512), f"block_size {call.block_size}")
    contiguous(query=query, key=key, value=value, block_table=table)
    _lengths(call.actual_seq_lengths, call.actual_seq_lengths_kv, tokens, table.shape, call.block_size)
    need(call.sparse_mode == 3, f"sparse_mode {call.sparse_mode}: causal attention aligned to the end is 3")
    mask = call.atten_mask
    need(mask is not None, "sparse_mode 3 needs atten_mask")
    need(tuple(mask.shape) == (MASK_SIZE, MASK_SIZE) and mask.dtype in MASKS, f"mask {mask.shape} {mask.dtype}")

    if "out" in vars(call):
        need(call.workspace is not None and len(call.out) == 2, "out has two tensors and goes with a workspace")
        out = call.out[0]
        need(out.shape == query.shape and out.dtype == query.dtype, f"out {out.shape} {out.dtype} of {query.shape}")
        contiguous(out=out)


_npu_fused_infer_attention_score_get_max_workspace = npu_fused_infer_attention_score


def _npu_fused_infer_attention_score_infer_output(call: SimpleNamespace) -> None:
    plain(call, "quant_scale2", "query_rope")
    need(call.input_layout == "TND" and call.query.dim() == 3, f"layout {call.input_layout}, query {call.query.shape}")


def _lengths(totals: Any, kv_lens: Any, tokens: int, table: torch.Size, block_size: int) -> None:
    """Queries: running totals; keys of a paged cache: each sequence's own. Both on the host."""
    need(isinstance(totals, (list, tuple)) and isinstance(kv_lens, (list, tuple)), "TND needs both lists of lengths")
    need(len(totals) == len(kv_lens) == table[0], f"{len(totals)}, {len(kv_lens)} lengths, {table[0]} block tables")
    need(totals[-1] == tokens, f"actual_seq_lengths are running totals that end at {tokens}, not at {totals[-1]}")
    for query_len, kv_len in zip((b - a for a, b in pairwise((0, *totals))), kv_lens, strict=True):
        need(query_len > 0, "actual_seq_lengths must rise")
        need(query_len <= kv_len <= table[1] * block_size, f"{kv_len} keys for {query_len} queries, table {table}")
