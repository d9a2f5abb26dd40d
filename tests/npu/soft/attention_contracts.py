"""What attention and the operators that write its cache demand of a call: see `contracts`."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.npu.soft.demands import HALF, contiguous, need, plain

I8, F32 = torch.int8, torch.float32
UPDATED = (*HALF, F32, torch.bool, torch.int64, I8)
OF_BLOCKS = 5  # antiquant_mode: a scale for each token and head, in the blocks of the cache
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


def npu_scatter_nd_update_(call: SimpleNamespace) -> None:
    data, indices, updates = call.input, call.indices, call.updates
    need(data.dtype in UPDATED and updates.dtype == data.dtype, f"input {data.dtype}, updates {updates.dtype}")
    need(indices.dtype in (torch.int32, torch.int64) and indices.dim() >= 2, f"indices {indices.dtype} {indices.shape}")
    axes = indices.shape[-1]
    need(axes <= data.dim(), f"indices {indices.shape} for {data.shape}")
    need(updates.shape == indices.shape[:-1] + data.shape[axes:], f"updates {updates.shape}, indices {indices.shape}")
    contiguous(input=data)  # another one is copied there and back, which is not modelled here


def npu_fused_infer_attention_score(call: SimpleNamespace) -> None:
    """The three forms that are used here: packed queries over a paged cache of floats or over floats that lie as they
    do, causal; and single queries over a paged cache of int8."""
    query, key, value = call.query, call.key, call.value
    known = {"query", "key", "value", "block_table", "atten_mask", "workspace"}
    scales = {"key_antiquant_scale", "value_antiquant_scale"} if call.input_layout == "BNSD" else set()
    plain(call, *_tensors(call, known | scales))
    need(query.dtype in HALF, f"query {query.dtype}")
    need(key.shape == value.shape and key.dtype == value.dtype, f"{key.shape} {key.dtype}, {value.shape} {value.dtype}")
    need(call.inner_precise == 0 and not call.softmax_lse_flag, "high precision, without softmax_lse")
    contiguous(query=query, key=key, value=value)
    (_single_queries if call.input_layout == "BNSD" else _packed_queries)(call)
    if "out" in vars(call):
        need(call.workspace is not None and len(call.out) == 2, "out has two tensors and goes with a workspace")
        out = call.out[0]
        need(out.shape == query.shape and out.dtype == query.dtype, f"out {out.shape} {out.dtype} of {query.shape}")
        contiguous(out=out)


def _tensors(call: SimpleNamespace, known: set[str]) -> list[str]:
    """The arguments beside the known ones that are tensors."""
    return [name for name, given in vars(call).items() if isinstance(given, Tensor) and name not in known]


def _heads(call: SimpleNamespace, heads: int) -> int:
    """Of the keys."""
    kv_heads = call.num_key_value_heads or call.num_heads
    shape = call.query.shape
    need(heads == call.num_heads and heads % kv_heads == 0, f"num_heads {call.num_heads}/{kv_heads} for {shape}")
    return int(kv_heads)


def _paged(call: SimpleNamespace, row: int) -> None:
    """The blocks of a cache whose tokens have so many values, and their table."""
    key, table = call.key, call.block_table
    need(table.dtype == torch.int32 and table.dim() == 2, f"block_table {table.dtype} {table.shape}")
    need(key.dim() == 3, f"a paged cache is [P, S, M * D], not {key.shape}")
    need(key.shape[1:] == (call.block_size, row), f"cache {key.shape}, block_size {call.block_size}")
    contiguous(block_table=table)


def _packed_queries(call: SimpleNamespace) -> None:
    """TND: no integers. Without a block_table the keys lie one after the other, and their lengths are totals too."""
    query, key, table, totals = call.query, call.key, call.block_table, call.actual_seq_lengths_kv
    need(call.input_layout == "TND" and query.dim() == 3, f"layout {call.input_layout}, query {query.shape}")
    need(query.dtype == key.dtype, f"query {query.dtype}, key {key.dtype}")
    tokens, heads, dim = query.shape
    kv_heads = _heads(call, heads)
    need(dim == 128, f"head size {dim}: TND takes 128 without rope")
    if table is not None:
        _paged(call, kv_heads * dim)
        need(call.block_size in (128, 256, 384, 512), f"block_size {call.block_size}")
        _lengths(call.actual_seq_lengths, totals, tokens)
        need(len(totals) == table.shape[0], f"{len(totals)} lengths, {table.shape[0]} block tables")
        need(max(totals) <= table.shape[1] * call.block_size, f"{max(totals)} keys, block_table {table.shape}")
    else:
        need(key.dim() == 3 and key.shape[1:] == (kv_heads, dim), f"keys [T, M, D] {key.shape}")
        need(call.block_size == 0, f"block_size {call.block_size} without a block_table")
        need(isinstance(totals, (list, tuple)), "TND needs both lists of lengths")
        _lengths(call.actual_seq_lengths, [b - a for a, b in pairwise((0, *totals))], tokens)
        need(totals[-1] == len(key), f"actual_seq_lengths_kv are running totals that end at {len(key)}, not {totals}")
    need(call.key_antiquant_mode == call.value_antiquant_mode == 0, "TND has no antiquant modes")
    need(call.sparse_mode == 3, f"sparse_mode {call.sparse_mode}: causal attention aligned to the end is 3")
    mask = call.atten_mask
    need(mask is not None, "sparse_mode 3 needs atten_mask")
    need(tuple(mask.shape) == (MASK_SIZE, MASK_SIZE) and mask.dtype in MASKS, f"mask {mask.shape} {mask.dtype}")


def _single_queries(call: SimpleNamespace) -> None:
    """BNSD, one query each. Scales of each token and head in the blocks of the cache (mode 5), without offsets."""
    query, key, table = call.query, call.key, call.block_table
    need(query.dim() == 4 and query.shape[2] == 1, f"query {query.shape} is [B, N, 1, D] beside a paged cache of int8")
    need(key.dtype == I8, f"key {key.dtype}: other forms of BNSD are not modelled here")
    need(table is not None, "block_table is missing")
    batch, heads, _, dim = query.shape
    kv_heads = _heads(call, heads)
    need(dim % 32 == 0 and dim <= 512, f"head size {dim}")
    _paged(call, kv_heads * dim)
    need(call.block_size % 32 == 0 and 0 < call.block_size <= 512, f"block_size {call.block_size}")
    need(call.key_antiquant_mode == call.value_antiquant_mode == OF_BLOCKS, f"mode {call.key_antiquant_mode}")
    for scale in (call.key_antiquant_scale, call.value_antiquant_scale):
        need(scale is not None and scale.dtype == F32, "integers need scales of float32")
        shape = (len(key), kv_heads, call.block_size)
        need(tuple(scale.shape) == shape, f"scales {tuple(scale.shape)} are {shape}, blocks of heads of tokens")
        contiguous(scale=scale)
    lengths = call.actual_seq_lengths_kv
    need(isinstance(lengths, (list, tuple)), "a paged cache needs actual_seq_lengths_kv")
    need(len(lengths) == len(table) == batch, f"{len(lengths)} lengths, {len(table)} block tables, {batch} queries")
    most = table.shape[1] * call.block_size
    need(0 < min(lengths) and max(lengths) <= most, f"lengths {lengths} in tables of {most} tokens")
    need(call.sparse_mode == 0 and call.atten_mask is None, "one query sees all keys: no mask")


_npu_fused_infer_attention_score_get_max_workspace = npu_fused_infer_attention_score


def _npu_fused_infer_attention_score_infer_output(call: SimpleNamespace) -> None:
    plain(call, "quant_scale2", "query_rope")
    need(call.input_layout in ("TND", "BNSD"), f"layout {call.input_layout}")


def _lengths(totals: Any, kv_lens: Any, tokens: int) -> None:
    """Queries: running totals; keys of a paged cache: each sequence's own. Both on the host."""
    need(isinstance(totals, (list, tuple)) and isinstance(kv_lens, (list, tuple)), "TND needs both lists of lengths")
    need(len(totals) == len(kv_lens), f"{len(totals)} lengths of queries, {len(kv_lens)} of keys")
    need(totals[-1] == tokens, f"actual_seq_lengths are running totals that end at {tokens}, not at {totals[-1]}")
    for query_len, kv_len in zip((b - a for a, b in pairwise((0, *totals))), kv_lens, strict=True):
        need(query_len > 0, "actual_seq_lengths must rise")
        need(query_len <= kv_len, f"{kv_len} keys for {query_len} queries")
