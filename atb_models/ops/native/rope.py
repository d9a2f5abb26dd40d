"""Rotary positions together with the write to the paged cache, by the library."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, threads
from atb_models.ops.native.linear import FLOATS
from atb_models.ops.native.structs import FORMATS, RopeCall


def rope_and_cache(
    library: Library,
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    slots_T: Tensor,
) -> Tensor:
    """Turn the pairs (d, d + half) of q and k by their token's angle, half = cos_TD.shape[1] -> q [T, N, D].

    Keys and values are written to the slots of the caches (slot = block * S + offset, int32). Elements of a head
    beyond 2 * half stay as they are. Tables are float32. A token's heads must lie together; other strides are free.
    Raises ValueError, before anything is written, for tensors that do not go together or a slot that is not there.
    """
    _check(q_TND, k_TMD, v_TMD, cos_TD, sin_TD, k_cache_PSMD, v_cache_PSMD, slots_T)
    tokens, heads, head_dim = q_TND.shape
    blocks, block_size, kv_heads, _ = k_cache_PSMD.shape
    out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype)
    call = RopeCall(
        *(x.data_ptr() for x in (q_TND, k_TMD, v_TMD, cos_TD, sin_TD, slots_T, out_TND, k_cache_PSMD, v_cache_PSMD)),
        *(x.stride(0) for x in (q_TND, k_TMD, v_TMD)),
        *k_cache_PSMD.stride()[:3],
        *v_cache_PSMD.stride()[:3],
        tokens,
        heads,
        kv_heads,
        head_dim,
        cos_TD.shape[1],
        block_size,
        blocks,
        FORMATS[q_TND.dtype],
        threads(),
    )
    refuse(library.rope(byref(call)), f"a cache of {blocks} blocks of {block_size}")
    return out_TND


def _check(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    slots_T: Tensor,
) -> None:
    floats, tables = (q_TND, k_TMD, v_TMD, k_cache_PSMD, v_cache_PSMD), (cos_TD, sin_TD)
    on_cpu("Rope", *floats, *tables, slots_T)
    if q_TND.dtype not in FLOATS or any(x.dtype != q_TND.dtype for x in floats):
        raise ValueError(f"Rope: {[x.dtype for x in floats]} for q, k, v and their caches")
    if any(x.dtype != torch.float32 for x in tables) or slots_T.dtype != torch.int32:
        raise ValueError(f"Rope: tables of {cos_TD.dtype} and {sin_TD.dtype}, slots of {slots_T.dtype}")
    tokens, _, head_dim = q_TND.shape
    half = cos_TD.shape[1]
    if (
        k_TMD.shape != v_TMD.shape
        or k_cache_PSMD.shape != v_cache_PSMD.shape
        or k_TMD.shape[1:] != k_cache_PSMD.shape[2:]
        or k_TMD.shape[0] != tokens
        or k_TMD.shape[2] != head_dim
        or any(x.shape != (tokens, half) for x in tables)
        or slots_T.shape != (tokens,)
        or 2 * half > head_dim
    ):
        raise ValueError(
            f"Rope: {[tuple(x.shape) for x in (*floats, *tables, slots_T)]} do not go together: q, k, v, their caches,"
            " cos, sin and slots"
        )
    for x in (q_TND, k_TMD, v_TMD, cos_TD, sin_TD):
        dense("Rope", x, 2)
    for x in (k_cache_PSMD, v_cache_PSMD, slots_T):
        dense("Rope", x)
