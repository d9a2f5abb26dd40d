"""PagedAttention by the library."""

from __future__ import annotations

from ctypes import byref
from itertools import accumulate

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, scratch, threads
from atb_models.ops.native.planes import ScalePlanes, described_scales
from atb_models.ops.native.structs import FORMATS, AttentionCall

MAX_HEAD_DIM = 256


def paged_attention(
    library: Library,
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    block_table_BC: Tensor,
    query_starts: Tensor,
    kv_lens_B: Tensor,
    scale: float,
    scales: ScalePlanes | None = None,
) -> Tensor:
    """Causal attention of each sequence's newest queries over its cached tokens -> [T, N, D].

    Sequence b has the queries `query_starts[b]` to `query_starts[b + 1]` and `kv_lens_B[b]` cached tokens, theirs
    included. Table, starts [B + 1] and lengths are int32. A token's heads must lie together, as must a head's
    elements in the caches; other strides are free. What lies beyond a sequence's end is never used.
    scales: float32 [P, S, M, 1] of the keys and of the values where the caches are int8.
    Raises ValueError for tensors that do not go together, lengths that do not, and blocks that the cache lacks.
    """
    call = _described(q_TND, k_cache_PSMD, v_cache_PSMD, block_table_BC, query_starts, kv_lens_B, scales)
    out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype)
    call.out, call.scale, call.threads = out_TND.data_ptr(), scale, threads()
    if not q_TND.shape[0]:
        return out_TND
    call.scratch = scratch(library.attention_scratch(byref(call)))
    refuse(
        library.attention(byref(call)),
        f"{q_TND.shape[0]} queries, starts {query_starts.tolist()}, lengths {kv_lens_B.tolist()},"
        f" {k_cache_PSMD.shape[0]} blocks of {k_cache_PSMD.shape[1]}, {block_table_BC.shape[1]} in a table",
    )
    return out_TND


def scratch_floats(
    library: Library, q_TND: Tensor, k_cache_PSMD: Tensor, query_lens: list[int], kv_lens: list[int]
) -> int:
    """Floats that a call with these lengths works with; the tensors may be on meta."""
    (tokens, heads, head_dim), (blocks, block_size, kv_heads, _) = q_TND.shape, k_cache_PSMD.shape
    starts = torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32)
    lengths = torch.tensor(kv_lens, dtype=torch.int32)
    call = AttentionCall(
        starts=starts.data_ptr(), kv_lens=lengths.data_ptr(), tokens=tokens, sequences=len(kv_lens), heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, blocks=blocks, format=FORMATS[q_TND.dtype],
        threads=threads(),
    )  # fmt: skip
    return int(library.attention_scratch(byref(call))) if tokens else 0


def _described(
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    block_table_BC: Tensor,
    query_starts: Tensor,
    kv_lens_B: Tensor,
    scales: ScalePlanes | None,
) -> AttentionCall:
    """The call without its result; raises ValueError where the C side could not rely on the tensors."""
    tensors = (q_TND, k_cache_PSMD, v_cache_PSMD, block_table_BC, query_starts, kv_lens_B)
    on_cpu("PagedAttention", *tensors)
    if q_TND.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"PagedAttention: queries of {q_TND.dtype}")
    stored = q_TND.dtype if scales is None else torch.int8
    if k_cache_PSMD.dtype != stored or v_cache_PSMD.dtype != stored:
        raise ValueError(
            f"PagedAttention: queries of {q_TND.dtype}, keys of {k_cache_PSMD.dtype}, values of {v_cache_PSMD.dtype}"
        )
    described = described_scales("PagedAttention", k_cache_PSMD, scales)
    if any(x.dtype != torch.int32 for x in (block_table_BC, query_starts, kv_lens_B)):
        raise ValueError("PagedAttention: the block table, the query starts and the lengths are int32")
    tokens, heads, head_dim = q_TND.shape
    blocks, block_size, kv_heads, width = k_cache_PSMD.shape
    sequences = kv_lens_B.shape[0]
    if (
        k_cache_PSMD.shape != v_cache_PSMD.shape
        or width != head_dim
        or not 0 < head_dim <= MAX_HEAD_DIM
        or heads % kv_heads
        or block_table_BC.shape[0] != sequences
        or query_starts.shape != (sequences + 1,)
        or not sequences
    ):
        raise ValueError(
            f"PagedAttention: queries {tuple(q_TND.shape)}, keys {tuple(k_cache_PSMD.shape)}, values"
            f" {tuple(v_cache_PSMD.shape)}, table {tuple(block_table_BC.shape)}, starts {tuple(query_starts.shape)} and"
            f" lengths {tuple(kv_lens_B.shape)} do not go together"
        )
    for x in tensors:
        dense("PagedAttention", x, 2 if x is q_TND else 1)
    (k_block, k_slot, k_head, _), (v_block, v_slot, v_head, _) = k_cache_PSMD.stride(), v_cache_PSMD.stride()
    pointers = (x.data_ptr() for x in (q_TND, k_cache_PSMD, v_cache_PSMD))
    lists = (x.data_ptr() for x in (block_table_BC, query_starts, kv_lens_B))
    strides = (q_TND.stride(0), k_block, k_slot, k_head, v_block, v_slot, v_head, block_table_BC.stride(0))
    sizes = (tokens, sequences, heads, kv_heads, head_dim, block_size, blocks, block_table_BC.shape[1])
    call = AttentionCall(*pointers, None, *lists, None, *strides, *sizes, FORMATS[q_TND.dtype])
    call.k_scale, call.v_scale = described
    return call
