"""The planes of a KV cache that the library has a form for: K and V, in the data type of the queries or as int8."""

from __future__ import annotations

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native.structs import Scales

# Elements of a head in a cache of int8, as in csrc/rope.cpp.
MOST_BYTES = 256

ScalePlanes = tuple[Tensor, Tensor]


def has_planes(cache: LayerCache, dtype: torch.dtype) -> bool:
    """Whether it holds K and V alone, in the data type of the queries, or in int8 with scales; maybe on meta."""
    int8 = set(cache) == {"k", "v", "k_scale", "v_scale"}
    stored = torch.int8 if int8 else dtype
    return (int8 or set(cache) == {"k", "v"}) and cache.k_PSMD.dtype == cache.v_PSMD.dtype == stored


def scale_planes(cache: LayerCache) -> ScalePlanes | None:
    """Those of K and of V, each [P, S, M, 1]; None where these are floats."""
    return (cache["k_scale"], cache["v_scale"]) if "k_scale" in cache else None


def described_scales(name: str, cache_PSMD: Tensor, scales: ScalePlanes | None) -> tuple[Scales, Scales]:
    """The scales of keys and values in caches of this shape; those without data where there are none.

    Raises ValueError unless they are float32 [P, S, M, 1] on the CPU.
    """
    if scales is None:
        return Scales(), Scales()
    for scale_PSM1 in scales:
        if scale_PSM1.dtype != torch.float32 or scale_PSM1.shape != (*cache_PSMD.shape[:3], 1) or not scale_PSM1.is_cpu:
            raise ValueError(
                f"{name}: scales {tuple(scale_PSM1.shape)} of {scale_PSM1.dtype} on {scale_PSM1.device} do not go with"
                f" a cache of {tuple(cache_PSMD.shape)}: float32 [P, S, M, 1]"
            )
    k, v = (Scales(x.data_ptr(), *x.stride()[:3]) for x in scales)
    return k, v
