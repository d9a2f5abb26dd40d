"""The table's operations of latent attention by the library; torch has the planes and sizes that it has no form for.

On meta tensors the rules give the results and the library's workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.latent.attention import latent_attention, latent_shape
from atb_models.ops.latent.cache import rope_and_latent_cache
from atb_models.ops.native.latent import attention, rope
from atb_models.ops.native.latent.planes import has_planes
from atb_models.ops.native.library import Library
from atb_models.ops.step import StepInput


def _rope_and_cache(
    library: Library,
    q_TND: Tensor,
    latent_TZ: Tensor,
    rope_key_TY: Tensor,
    cos_TY: Tensor,
    sin_TY: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Tensor:
    given = q_TND, latent_TZ, rope_key_TY, cos_TY, sin_TY, cache
    if not has_planes(cache, q_TND.dtype):
        return rope_and_latent_cache.reference(*given, step)
    return rope.rope_and_latent_cache(library, *given, step.slots_T)


def _rope_and_cache_shape(
    library: Library,
    q_TND: Tensor,
    latent_TZ: Tensor,
    rope_key_TY: Tensor,
    cos_TY: Tensor,
    sin_TY: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Tensor:
    given = q_TND, latent_TZ, rope_key_TY, cos_TY, sin_TY, cache
    if not has_planes(cache, q_TND.dtype):
        return rope_and_latent_cache.reference(*given, step)
    rope.check_shapes(*given, step.slots_T)
    for plane in cache.values():
        plane.zero_()  # on meta tensors: which planes are written
    return q_TND.new_empty(q_TND.shape)


def _attention(
    library: Library, q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache, step: StepInput, scale: float
) -> Tensor:
    if not _has_attention(q_TND, kv_b_weight_OZ, cache):
        return latent_attention.reference(q_TND, kv_b_weight_OZ, cache, step, scale)
    lists = step.block_table_BC, step.query_starts_B, step.kv_lens_B
    return attention.latent_attention(library, q_TND, kv_b_weight_OZ, cache, *lists, scale)


def _attention_shape(
    library: Library, q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache, step: StepInput, scale: float
) -> Tensor:
    if not _has_attention(q_TND, kv_b_weight_OZ, cache):
        return latent_attention.reference(q_TND, kv_b_weight_OZ, cache, step, scale)
    shape = latent_shape(q_TND, kv_b_weight_OZ, cache)
    floats = attention.scratch_floats(library, q_TND, cache, shape, step.query_lens, step.kv_lens)
    _workspace = q_TND.new_empty(floats, dtype=torch.float32)
    return q_TND.new_empty(*q_TND.shape[:2], shape.value)


def _has_attention(q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache) -> bool:
    """Whether the library has a form for these planes and sizes."""
    shape = latent_shape(q_TND, kv_b_weight_OZ, cache)
    sizes = 0 < shape.nope <= attention.MOST_VALUES and shape.value <= attention.MOST_VALUES
    return sizes and has_planes(cache, q_TND.dtype)


BODIES: Mapping[str, Callable[..., Any]] = {
    "RopeAndLatentCache": _rope_and_cache,
    "LatentAttention": _attention,
}
SHAPES: Mapping[str, Callable[..., Any]] = {
    "RopeAndLatentCache": _rope_and_cache_shape,
    "LatentAttention": _attention_shape,
}
