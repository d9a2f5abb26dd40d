"""The planes of a latent cache that the library has a form for: in the data type of the queries, or int8."""

from __future__ import annotations

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native.checks import dense, on_cpu
from atb_models.ops.native.structs import Scales

VECTORS = ("latent", "rope_key")
# Values of a rotary key in a cache of int8, as in csrc/rope.cpp.
MOST_BYTES = 256


def has_planes(cache: LayerCache, dtype: torch.dtype) -> bool:
    """Whether it holds latents and rotary keys alone, in that data type, or in int8 with scales; maybe on meta."""
    int8 = cache["latent"].dtype == torch.int8
    scales = {f"{name}_scale" for name in VECTORS} if int8 else set()
    stored = torch.int8 if int8 else dtype
    alike = all(cache[name].dtype == stored for name in VECTORS)
    return set(cache) == {*VECTORS, *scales} and alike and not (int8 and cache.rope_key_PSY.shape[2] > MOST_BYTES)


def check_planes(name: str, cache: LayerCache) -> None:
    """Raises ValueError for planes that the C side could not rely on."""
    blocks = cache.latent_PSZ.shape[:2]
    for plane in cache.values():
        on_cpu(name, plane)
        dense(name, plane)
        if plane.shape[:2] != blocks:
            raise ValueError(f"{name}: planes of {[tuple(plane.shape) for plane in cache.values()]}")
    for vector in VECTORS:
        scale = cache.get(f"{vector}_scale")
        if scale is not None and (scale.dtype != torch.float32 or scale.shape != (*blocks, 1)):
            raise ValueError(f"{name}: scales {tuple(scale.shape)} of {scale.dtype} for a cache of {tuple(blocks)}")


def described_scales(cache: LayerCache) -> tuple[Scales, Scales]:
    """The scales of latents and of rotary keys; without data where there are none."""
    latent, key = (_scales(cache.get(f"{vector}_scale")) for vector in VECTORS)
    return latent, key


def _scales(scale_PS1: Tensor | None) -> Scales:
    return Scales() if scale_PS1 is None else Scales(scale_PS1.data_ptr(), *scale_PS1.stride()[:2], 0)
