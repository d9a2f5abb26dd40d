"""LatentAttention by the library, always in the absorbed form: one form for prompts, chunks and single tokens, so that
a token's bits do not depend on how many are computed with it."""

from __future__ import annotations

from ctypes import byref
from itertools import accumulate

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.latent.attention import latent_shape
from atb_models.ops.latent.cost import LatentShape
from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.latent.planes import check_planes, described_scales
from atb_models.ops.native.library import Library, scratch, threads
from atb_models.ops.native.linear import FLOATS
from atb_models.ops.native.structs import FORMATS, LatentCall

NAME = "LatentAttention"
MOST_VALUES = 256  # of a head's keys without a position, and of its values: CHUNK in csrc/attention/attend.h


def latent_attention(
    library: Library,
    q_TND: Tensor,
    kv_b_weight_OZ: Tensor,
    cache: LayerCache,
    block_table_BC: Tensor,
    query_starts: Tensor,
    kv_lens_B: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention of each sequence's newest queries over its cached latents -> [T, N, values].

    Tensors as in the operation of this name; sequences as in `native.attention.paged_attention`. A token's heads must
    lie together, as must a vector's elements in the planes and a row's in the weight; other strides of planes are free.
    Raises ValueError for tensors that do not go together, lengths that do not, and blocks that the cache lacks.
    """
    shape = latent_shape(q_TND, kv_b_weight_OZ, cache)
    _check(q_TND, kv_b_weight_OZ, cache, (block_table_BC, query_starts, kv_lens_B), shape)
    out_TND = torch.empty(*q_TND.shape[:2], shape.value, dtype=q_TND.dtype)
    if not q_TND.shape[0]:
        return out_TND
    call = _sized(q_TND, cache, shape, query_starts, kv_lens_B)
    call.q, call.maps, call.out = q_TND.data_ptr(), kv_b_weight_OZ.data_ptr(), out_TND.data_ptr()
    call.latents, call.keys = cache.latent_PSZ.data_ptr(), cache.rope_key_PSY.data_ptr()
    call.q_row, call.table, call.table_row = q_TND.stride(0), block_table_BC.data_ptr(), block_table_BC.stride(0)
    call.table_width, call.scale = block_table_BC.shape[1], scale
    call.latent_block, call.latent_slot = cache.latent_PSZ.stride()[:2]
    call.key_block, call.key_slot = cache.rope_key_PSY.stride()[:2]
    call.latent_scale, call.key_scale = described_scales(cache)
    call.scratch = scratch(library.latent_attention_scratch(byref(call)))
    refuse(
        library.latent_attention(byref(call)),
        f"{q_TND.shape[0]} queries, starts {query_starts.tolist()}, lengths {kv_lens_B.tolist()},"
        f" {call.blocks} blocks of {call.block_size}, {block_table_BC.shape[1]} in a table",
    )
    return out_TND


def scratch_floats(
    library: Library, q_TND: Tensor, cache: LayerCache, shape: LatentShape, query_lens: list[int], kv_lens: list[int]
) -> int:
    """Floats that a call with these lengths works with; the tensors may be on meta."""
    starts = torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32)
    lengths = torch.tensor(kv_lens, dtype=torch.int32)
    call = _sized(q_TND, cache, shape, starts, lengths)
    return int(library.latent_attention_scratch(byref(call))) if q_TND.shape[0] else 0


def _sized(
    q_TND: Tensor, cache: LayerCache, shape: LatentShape, query_starts: Tensor, kv_lens_B: Tensor
) -> LatentCall:
    blocks, block_size, latent = cache.latent_PSZ.shape
    return LatentCall(
        starts=query_starts.data_ptr(), kv_lens=kv_lens_B.data_ptr(), tokens=q_TND.shape[0], sequences=len(kv_lens_B),
        heads=shape.heads, nope=shape.nope, rotary=shape.rotary, value=shape.value, latent=latent,
        block_size=block_size, blocks=blocks, format=FORMATS[q_TND.dtype], threads=threads(),
    )  # fmt: skip


def _check(
    q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache, lists: tuple[Tensor, Tensor, Tensor], shape: LatentShape
) -> None:
    """Raises ValueError where the C side could not rely on the tensors."""
    on_cpu(NAME, q_TND, kv_b_weight_OZ, *lists)
    check_planes(NAME, cache)
    table_BC, query_starts, kv_lens_B = lists
    stored = torch.int8 if "latent_scale" in cache else q_TND.dtype
    floats = [x.dtype for x in (q_TND, kv_b_weight_OZ, cache.latent_PSZ, cache.rope_key_PSY)]
    if q_TND.dtype not in FLOATS or floats[1:] != [q_TND.dtype, stored, stored]:
        raise ValueError(f"{NAME}: {floats} for queries, keys and values, latents and rotary keys")
    if any(x.dtype != torch.int32 for x in lists):
        raise ValueError(f"{NAME}: the block table, the query starts and the lengths are int32")
    sequences = len(kv_lens_B)
    if not (
        0 < shape.nope <= MOST_VALUES
        and shape.value <= MOST_VALUES
        and table_BC.shape[0] == sequences > 0
        and query_starts.shape == (sequences + 1,)
    ):
        raise ValueError(
            f"{NAME}: {shape}, a table {tuple(table_BC.shape)}, starts {tuple(query_starts.shape)} and lengths"
            f" {tuple(kv_lens_B.shape)} do not go together"
        )
    dense(NAME, q_TND, 2)
    dense(NAME, kv_b_weight_OZ, 2)
    for x in lists:
        dense(NAME, x)
