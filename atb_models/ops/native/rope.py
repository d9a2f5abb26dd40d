"""Rotary positions by the library: their tables, and the rotation together with the write to the paged cache."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, threads
from atb_models.ops.native.linear import FLOATS
from atb_models.ops.native.planes import MOST_BYTES, ScalePlanes, described_scales
from atb_models.ops.native.structs import FORMATS, RopeCall, RopeTablesCall


def rope_tables(library: Library, positions_T: Tensor, inv_freq_D: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """What the operation of this name does. Raises ValueError for positions that are not int32, other frequencies than
    float32, or what does not lie side by side.
    """
    check_frequencies("RopeTables", inv_freq_D)
    on_cpu("RopeTables", positions_T)
    dense("RopeTables", positions_T)
    if positions_T.dtype != torch.int32 or positions_T.dim() != 1:
        raise ValueError(f"RopeTables: positions {tuple(positions_T.shape)} of {positions_T.dtype}")
    cos_TD, sin_TD = torch.empty(2, len(positions_T), len(inv_freq_D))
    call = RopeTablesCall(
        *(x.data_ptr() for x in (positions_T, inv_freq_D, cos_TD, sin_TD)), *cos_TD.shape, threads(), factor
    )
    refuse(library.rope_tables(byref(call)), "RopeTables")
    return cos_TD, sin_TD


def check_frequencies(name: str, inv_freq_D: Tensor) -> None:
    """Raises ValueError for inverse frequencies that the C side does not take."""
    on_cpu(name, inv_freq_D)
    dense(name, inv_freq_D)
    if inv_freq_D.dtype != torch.float32 or inv_freq_D.dim() != 1:
        raise ValueError(f"{name}: inverse frequencies {tuple(inv_freq_D.shape)} of {inv_freq_D.dtype}")


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
    scales: ScalePlanes | None = None,
) -> Tensor:
    """Rotate the pairs (d, d + half) of q and k by their token's angle, half = cos_TD.shape[1] -> q [T, N, D].

    Keys and values are written to the slots of the caches (slot = block * S + offset, int32), no two tokens to the
    same. Elements of a head beyond 2 * half stay as they are. Tables are float32, products and sums too, each rounded
    as torch rounds it. A token's heads must lie together; other strides are free.
    scales: float32 [P, S, M, 1] of the keys and of the values where the caches are int8: heads of at most MOST_BYTES
    elements, quantised as `quantize_vectors` does it.
    Raises ValueError, before anything is written, for tensors that do not go together or a slot that is not there.
    """
    check_shapes(q_TND, k_TMD, v_TMD, cos_TD, sin_TD, k_cache_PSMD, v_cache_PSMD, slots_T)
    stored = q_TND.dtype if scales is None else torch.int8
    _check_storage(q_TND, k_TMD, v_TMD, cos_TD, sin_TD, k_cache_PSMD, v_cache_PSMD, slots_T, stored)
    tokens, heads, head_dim = q_TND.shape
    if scales is not None and head_dim > MOST_BYTES:
        raise ValueError(f"RopeAndCache: heads of {head_dim} elements as int8, at most {MOST_BYTES}")
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
        *described_scales("RopeAndCache", k_cache_PSMD, scales),
    )
    refuse(library.rope(byref(call)), f"a cache of {blocks} blocks of {block_size}")
    return out_TND


def check_shapes(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    slots_T: Tensor,
) -> None:
    """Raises ValueError for shapes that do not go together; the tensors may be on meta."""
    tokens, _, head_dim = q_TND.shape
    half = cos_TD.shape[1]
    if not (
        k_TMD.shape == v_TMD.shape == (tokens, k_cache_PSMD.shape[2], head_dim)
        and k_cache_PSMD.shape == v_cache_PSMD.shape
        and k_cache_PSMD.shape[3] == head_dim >= 2 * half
        and cos_TD.shape == sin_TD.shape == (tokens, half)
        and slots_T.shape == (tokens,)
    ):
        given = (q_TND, k_TMD, v_TMD, k_cache_PSMD, v_cache_PSMD, cos_TD, sin_TD, slots_T)
        raise ValueError(
            f"RopeAndCache: {[tuple(x.shape) for x in given]} do not go together: q, k, v, their caches, cos, sin and"
            " slots"
        )


def _check_storage(
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    slots_T: Tensor,
    stored: torch.dtype,
) -> None:
    """Raises ValueError for a device, a data type or strides that the C side does not take."""
    on_cpu("RopeAndCache", q_TND, k_TMD, v_TMD, cos_TD, sin_TD, k_cache_PSMD, v_cache_PSMD, slots_T)
    dtype = q_TND.dtype
    of_caches = k_cache_PSMD.dtype == v_cache_PSMD.dtype == stored
    if dtype not in FLOATS or not dtype == k_TMD.dtype == v_TMD.dtype or not of_caches:
        floats = (q_TND, k_TMD, v_TMD, k_cache_PSMD, v_cache_PSMD)
        raise ValueError(f"RopeAndCache: {[x.dtype for x in floats]} for q, k, v and their caches")
    if not cos_TD.dtype == sin_TD.dtype == torch.float32 or slots_T.dtype != torch.int32:
        raise ValueError(f"RopeAndCache: tables of {cos_TD.dtype} and {sin_TD.dtype}, slots of {slots_T.dtype}")
    for x in (q_TND, k_TMD, v_TMD, cos_TD, sin_TD):
        dense("RopeAndCache", x, 2)
    for x in (k_cache_PSMD, v_cache_PSMD, slots_T):
        dense("RopeAndCache", x)
