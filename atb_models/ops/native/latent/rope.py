"""RopeAndLatentCache by the library."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.latent.planes import check_planes, described_scales
from atb_models.ops.native.library import Library, threads
from atb_models.ops.native.linear import FLOATS
from atb_models.ops.native.structs import FORMATS, LatentRopeCall

NAME = "RopeAndLatentCache"


def rope_and_latent_cache(
    library: Library,
    q_TND: Tensor,
    latent_TZ: Tensor,
    key_TY: Tensor,
    cos_TY: Tensor,
    sin_TY: Tensor,
    cache: LayerCache,
    slots_T: Tensor,
) -> Tensor:
    """Rotate the pairs (d, d + Y / 2) of the first Y values of q, and those of the keys -> q [T, N, D].

    Latents and keys are written to their slots (slot = block * S + offset, int32), no two tokens to the same; where the
    planes are int8, quantised as `quantize_vectors` does it. Tables are float32, products and sums too, each rounded as
    torch rounds it. A token's heads must lie together; other strides are free. Raises ValueError, before anything is
    written, for tensors that do not go together or a slot that is not there.
    """
    check_shapes(q_TND, latent_TZ, key_TY, cos_TY, sin_TY, cache, slots_T)
    rows = (q_TND, latent_TZ, key_TY)
    on_cpu(NAME, *rows, cos_TY, sin_TY, slots_T)
    check_planes(NAME, cache)
    if q_TND.dtype not in FLOATS or not q_TND.dtype == latent_TZ.dtype == key_TY.dtype:
        raise ValueError(f"{NAME}: queries, latents and keys of {[x.dtype for x in rows]}")
    if not cos_TY.dtype == sin_TY.dtype == torch.float32 or slots_T.dtype != torch.int32:
        raise ValueError(f"{NAME}: tables of {cos_TY.dtype} and {sin_TY.dtype}, slots of {slots_T.dtype}")
    for x in (q_TND, cos_TY, sin_TY):
        dense(NAME, x, 2)
    for x in (latent_TZ, key_TY, slots_T):
        dense(NAME, x)
    tokens, heads, width = q_TND.shape
    blocks, block_size, latent = cache.latent_PSZ.shape
    out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype)
    given = (*rows, cos_TY, sin_TY, slots_T, out_TND, cache.latent_PSZ, cache.rope_key_PSY)
    call = LatentRopeCall(
        *(x.data_ptr() for x in given),
        *(x.stride(0) for x in rows),
        *cache.latent_PSZ.stride()[:2],
        *cache.rope_key_PSY.stride()[:2],
        tokens,
        heads,
        width,
        cos_TY.shape[1],
        latent,
        block_size,
        blocks,
        FORMATS[q_TND.dtype],
        threads(),
        *described_scales(cache),
    )
    refuse(library.latent_rope(byref(call)), f"a cache of {blocks} blocks of {block_size}")
    return out_TND


def check_shapes(
    q_TND: Tensor,
    latent_TZ: Tensor,
    key_TY: Tensor,
    cos_TY: Tensor,
    sin_TY: Tensor,
    cache: LayerCache,
    slots_T: Tensor,
) -> None:
    """Raises ValueError for shapes that do not go together; the tensors may be on meta."""
    tokens, rotary = q_TND.shape[0], 2 * cos_TY.shape[1]
    if not (
        key_TY.shape == (tokens, rotary)
        and latent_TZ.shape == (tokens, cache.latent_PSZ.shape[2])
        and cache.rope_key_PSY.shape[2] == rotary <= q_TND.shape[2]
        and cos_TY.shape == sin_TY.shape == (tokens, rotary // 2)
        and slots_T.shape == (tokens,)
    ):
        given = (q_TND, latent_TZ, key_TY, cache.latent_PSZ, cache.rope_key_PSY, cos_TY, sin_TY, slots_T)
        raise ValueError(
            f"{NAME}: {[tuple(x.shape) for x in given]} do not go together: queries, latents, keys, their planes, cos,"
            " sin and slots"
        )
