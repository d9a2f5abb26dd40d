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


def npu_scatter_nd_update_(call: SimpleNamespace) -> Tensor:
    sizes = torch.tensor(call.input.shape[: call.indices.shape[-1]])
    indices = call.indices.long().flatten(0, -2)
    need(bool(((indices >= 0) & (indices < sizes)).all()), f"indices beyond {tuple(sizes.tolist())}")
    need(len(indices.unique(dim=0)) == len(indices), "two updates of the same place")
    call.input[indices.unbind(-1)] = call.updates.flatten(0, call.indices.dim() - 2)
    return call.input


def npu_fused_infer_attention_score(call: SimpleNamespace) -> tuple[Tensor, Tensor]:
    out, softmax_lse = vars(call).get("out") or _npu_fused_infer_attention_score_infer_output(call)
    (_single_queries if call.input_layout == "BNSD" else _packed_queries)(call, out)
    return out, softmax_lse


def _packed_queries(call: SimpleNamespace, out: Tensor) -> None:
    hidden = torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.bool).triu(1)
    need(torch.equal(call.atten_mask.bool(), hidden), "the mask has 1 where a key is hidden: above the diagonal")
    start = 0
    for row, (stop, kv_len) in enumerate(zip(call.actual_seq_lengths, call.actual_seq_lengths_kv, strict=True)):
        if call.block_table is None:  # a running total
            own = slice(call.actual_seq_lengths_kv[row - 1] if row else 0, kv_len)
            keys, values = call.key[own], call.value[own]
        else:
            keys, values = (_of_blocks(call, row, kv_len, cache) for cache in (call.key, call.value))
        out[start:stop] = _attend(call, call.query[start:stop], keys, values)
        start = stop


def _single_queries(call: SimpleNamespace, out: Tensor) -> None:
    scaled = ((call.key, call.key_antiquant_scale), (call.value, call.value_antiquant_scale))
    for row, kv_len in enumerate(call.actual_seq_lengths_kv):
        keys, values = (
            _of_blocks(call, row, kv_len, cache).float().unflatten(1, (scale.shape[1], -1))
            * _of_blocks(call, row, kv_len, scale.transpose(1, 2)).unsqueeze(-1)
            for cache, scale in scaled
        )
        out[row] = _attend(call, call.query[row].transpose(0, 1), keys, values).transpose(0, 1)


def _of_blocks(call: SimpleNamespace, row: int, kv_len: int, cache: Tensor) -> Tensor:
    """A sequence's own part of what lies in blocks of tokens."""
    blocks = call.block_table[row, : -(-kv_len // call.block_size)].long()
    need(bool((blocks >= 0).all() and (blocks < len(cache)).all()), "a block table leaves the cache")
    return cache[blocks].flatten(0, 1)[:kv_len]


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
