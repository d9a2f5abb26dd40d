"""What attention and the operators that write its cache compute: see `kernels`."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from tests.npu.soft.attention_contracts import MASK_SIZE
from tests.npu.soft.demands import need


def npu_scatter_pa_kv_cache(call: SimpleNamespace) -> None:
    slots = call.slot_mapping.long()
    for new, cache in ((call.key, call.key_cache), (call.value, call.value_cache)):
        rows = cache.view(-1, *cache.shape[2:])
        need(bool((slots >= 0).all() and (slots < rows.shape[0]).all()), f"slots beyond the {rows.shape[0]} there are")
        need(slots.unique().numel() == slots.numel(), "two tokens have the same slot")
        rows[slots] = new


def npu_fused_infer_attention_score(call: SimpleNamespace) -> tuple[Tensor, Tensor]:
    hidden = torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.bool).triu(1)
    need(torch.equal(call.atten_mask.bool(), hidden), "the mask has 1 where a key is hidden: above the diagonal")
    out, softmax_lse = vars(call).get("out") or _npu_fused_infer_attention_score_infer_output(call)
    start = 0
    for stop, kv_len, table in zip(call.actual_seq_lengths, call.actual_seq_lengths_kv, call.block_table, strict=True):
        blocks = table[: -(-kv_len // call.block_size)].long()
        need(bool((blocks >= 0).all() and (blocks < call.key.shape[0]).all()), "a block table leaves the cache")
        keys, values = (cache[blocks].flatten(0, 1)[:kv_len] for cache in (call.key, call.value))
        out[start:stop] = _attend(call, call.query[start:stop], keys, values)
        start = stop
    return out, softmax_lse


def _npu_fused_infer_attention_score_infer_output(call: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return torch.empty_like(call.query), call.query.new_empty(0, dtype=torch.float32)


def _npu_fused_infer_attention_score_get_max_workspace(call: SimpleNamespace) -> Tensor:
    return call.query.new_empty(1 << 20, dtype=torch.uint8)


def _attend(call: SimpleNamespace, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One sequence: its queries are the last of its keys."""
    queries, heads, dim = query.shape
    per_kv_head = heads // (call.num_key_value_heads or heads)
    keys, values = (x.view(len(x), -1, dim).float().repeat_interleave(per_kv_head, 1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys) * call.scale
    unseen = torch.ones(queries, len(keys), dtype=torch.bool).triu(len(keys) - queries + 1)
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).to(query.dtype)
