"""What the operators compute, on CPU tensors, written from their documents: float32 inside, rounded once at the end.

A kernel checks what only values show. What the documents leave undefined comes out as NaN. A
function here has the name of its operator.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.npu.soft.contracts import MASK_SIZE
from tests.npu.soft.demands import need


def _norm(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    over = tuple(range(-gamma.dim(), 0))
    inverse = (x.float().square().mean(over, keepdim=True) + epsilon).rsqrt()
    return (x.float() * inverse * gamma.float()).to(x.dtype), inverse


def npu_rms_norm(call: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return _norm(call.input, call.gamma, call.epsilon)


def npu_add_rms_norm(call: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    total = (call.x1.float() + call.x2.float()).to(call.x1.dtype)
    return (*_norm(total, call.gamma, call.epsilon), total)


def npu_swiglu(call: SimpleNamespace) -> Tensor:
    gate, up = call.input.float().chunk(2, call.dim)
    return (F.silu(gate) * up).to(call.input.dtype)


def npu_rotary_mul(call: SimpleNamespace) -> Tensor:
    first, second = call.input.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (call.input.float() * call.r1.float() + turned * call.r2.float()).to(call.input.dtype)


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


def npu_moe_gating_top_k(call: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    probs = call.x.float().softmax(-1)
    best = probs.sort(dim=-1, stable=True, descending=True)  # of equal ones the expert with the lower number
    weights = best.values[:, : call.k] * call.routed_scaling_factor
    unused = probs if call.out_flag else torch.full_like(probs, torch.nan)
    return weights.to(call.x.dtype).contiguous(), best.indices[:, : call.k].int().contiguous(), unused


def npu_moe_init_routing_v2(call: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    experts = call.expert_idx.flatten().long()
    need(bool((experts >= 0).all() and (experts < call.expert_num).all()), "an expert that there is not")
    order = experts.argsort(stable=True)
    rows = torch.empty_like(order)
    rows[order] = torch.arange(len(order))
    counts = experts.bincount(minlength=call.expert_num)
    copies = call.x[order // call.expert_idx.shape[1]]
    return copies, rows.int(), counts, torch.full((len(order),), torch.nan)


def npu_moe_token_unpermute(call: SimpleNamespace) -> Tensor:
    rows, probs, indices = call.permuted_tokens, call.probs, call.sorted_indices.long()
    need(torch.equal(indices.sort().values, torch.arange(len(indices))), "sorted_indices names each row once")
    picked = rows[indices.view(probs.shape)].float()
    return (picked * probs.float().unsqueeze(-1)).sum(1).to(rows.dtype)
