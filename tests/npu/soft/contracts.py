"""What the operators demand of a call, as far as shapes, dtypes and host lists say it.

torch_npu's Meta kernels check little of this. The sources are op-plugin's documents of each operator and, where those
are silent, the calls of vllm-ascend on Atlas A2. The checks read no values, so they hold for fake tensors too. A
function here has the name of its operator.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.npu.soft import integer_contracts
from tests.npu.soft.demands import FLOATS, HALF, ContractError, contiguous, need, plain

MASKS = (torch.int8, torch.uint8, torch.bool)
MASK_SIZE = 2048
OVERLOADS = {"npu_fused_infer_attention_score": ("out",)}


def bound(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleNamespace:
    """All arguments of a call by the names of the operator's schema, defaults included."""
    values = {}
    for place, argument in enumerate(op._schema.arguments):
        values[argument.name] = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
    return SimpleNamespace(**values)


def check(op: Any, call: SimpleNamespace) -> None:
    """Raise ContractError for a call that breaks the operator's contract, or whose operator has none."""
    namespace, name = op.namespace, op._schema.name.partition("::")[2]
    contracts = globals() | vars(integer_contracts)
    contract = contracts.get(name) if namespace == "npu" and name.lstrip("_").startswith("npu_") else None
    if contract is None or op._schema.overload_name not in ("", *OVERLOADS.get(name, ())):
        raise ContractError(f"{op}: the soft NPU does not know this operator")
    try:
        contract(call)
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from None


def npu_rms_norm(call: SimpleNamespace) -> None:
    x, gamma = call.input, call.gamma
    need(x.dtype in FLOATS and gamma.dtype in (x.dtype, torch.float32), f"dtypes {x.dtype} and {gamma.dtype}")
    need(gamma.dim() >= 1 and x.shape[-gamma.dim() :] == gamma.shape, f"gamma {gamma.shape} for input {x.shape}")


def npu_add_rms_norm(call: SimpleNamespace) -> None:
    x1, x2 = call.x1, call.x2
    need(x1.shape == x2.shape and x1.dtype == x2.dtype, f"x1 {x1.shape} {x1.dtype} and x2 {x2.shape} {x2.dtype}")
    npu_rms_norm(SimpleNamespace(input=x1, gamma=call.gamma))


def npu_swiglu(call: SimpleNamespace) -> None:
    need(call.input.dtype in FLOATS, f"dtype {call.input.dtype}")
    need(call.input.shape[call.dim] % 2 == 0, f"dimension {call.dim} of {call.input.shape} must be even")


def npu_rotary_mul(call: SimpleNamespace) -> None:
    x, r1, r2 = call.input, call.r1, call.r2
    plain(call, "rotate")
    need(call.rotary_mode == "half", f"rotary_mode {call.rotary_mode}")
    need(x.dim() == r1.dim() == r2.dim() == 4 and r1.shape == r2.shape, "input, r1 and r2 have four dimensions")
    need(x.dtype in FLOATS and x.dtype == r1.dtype == r2.dtype, f"dtypes {x.dtype}, {r1.dtype}, {r2.dtype}")
    batch, tokens, heads, dim = x.shape
    need(batch < 1000 and heads < 1000 and dim < 896 and dim % 2 == 0, f"input {x.shape}")
    shapes = ((1, tokens, 1, dim), (batch, tokens, 1, dim), (batch, tokens, heads, dim))
    need(tuple(r1.shape) in shapes, f"r1 {r1.shape} for input {x.shape} [B, S, N, D]")


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


def npu_moe_gating_top_k(call: SimpleNamespace) -> None:
    x = call.x
    plain(call, "bias", "input_ids", "tid2eid")
    need(x.dim() == 2 and x.dtype in FLOATS and x.shape[1] <= 2048, f"x {x.shape} {x.dtype}")
    need(call.group_count == call.k_group == 1, "groups are not modelled here")
    need(1 <= call.k <= x.shape[1] and x.shape[1] > 2, f"k {call.k} of {x.shape[1]} experts")
    need(call.renorm == 0 and call.norm_type == 0, f"renorm {call.renorm}, norm_type {call.norm_type}: softmax is 0, 0")


def npu_moe_init_routing_v2(call: SimpleNamespace) -> None:
    x, experts = call.x, call.expert_idx
    plain(call, "scale", "offset", "x_dtype")
    need(x.dim() == experts.dim() == 2 and x.shape[0] == experts.shape[0], f"x {x.shape}, expert_idx {experts.shape}")
    need(x.dtype in (*FLOATS, torch.int8), f"x {x.dtype}")
    need(experts.dtype == torch.int32, f"expert_idx {experts.dtype}")
    need(call.active_num == experts.numel(), f"active_num {call.active_num} must be rows * K, {experts.numel()}")
    need(call.expert_tokens_num_type == 1 and call.expert_tokens_num_flag, "counts (type 1, flag True) are wanted")
    need(call.quant_mode == -1 and call.drop_pad_mode == 0 and call.row_idx_type == 0, "plain, dropless, gather index")
    need(list(call.active_expert_range) == [0, call.expert_num], f"experts {call.active_expert_range}")
    contiguous(x=x, expert_idx=experts)


def npu_moe_token_unpermute(call: SimpleNamespace) -> None:
    rows, indices, probs = call.permuted_tokens, call.sorted_indices, call.probs
    need(not call.padded_mode and call.restore_shape is None and probs is not None, "the weighted, unpadded form")
    need(rows.dim() == 2 and probs.dim() == 2 and probs.shape[1] <= 512, f"rows {rows.shape}, probs {probs.shape}")
    need(rows.dtype in FLOATS and probs.dtype == rows.dtype, f"rows {rows.dtype}, probs {probs.dtype}")
    need(indices.dim() == 1 and indices.dtype == torch.int32, f"sorted_indices {indices.shape} {indices.dtype}")
    need(
        indices.numel() == probs.numel() == rows.shape[0], f"{indices.numel()} indices for {probs.shape}, {rows.shape}"
    )
    contiguous(permuted_tokens=rows, sorted_indices=indices, probs=probs)
