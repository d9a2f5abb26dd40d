"""The cache of latent attention: a latent and a rotary key of each token, which all heads share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from atb_models.ops.attention import caching, planes_by_name, rope
from atb_models.ops.cost import Cost, cost
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.step import StepInput
from atb_models.ops.table import op


def _operands(latent_TZ: Tensor, rope_key_TY: Tensor, cache: LayerCache, step: StepInput) -> dict[str, Any]:
    return {"latent_TZ": latent_TZ, "rope_key_TY": rope_key_TY, **planes_by_name(cache), "slots_T": step.slots_T}


def _cost(out: None, latent_TZ: Tensor, rope_key_TY: Tensor, cache: LayerCache, step: StepInput) -> Cost:
    latents = caching(len(latent_TZ), latent_TZ.shape[1], "latent", cache)
    keys = caching(len(rope_key_TY), rope_key_TY.shape[1], "rope_key", cache)
    return latents + keys + cost(0, (latent_TZ, rope_key_TY, step.slots_T), ())


@op("LatentCache", cost=_cost, operands=_operands, products=("latent_TZ", "rope_key_TY"))
def latent_cache(latent_TZ: Tensor, rope_key_TY: Tensor, cache: LayerCache, step: StepInput) -> None:
    """Write this step's latents and rotary keys to their slots, in the data type of the cache."""
    cache.write("latent", latent_TZ, step.slots_T)
    cache.write("rope_key", rope_key_TY, step.slots_T)


def _rope_operands(
    q_TND: Tensor,
    latent_TZ: Tensor,
    rope_key_TY: Tensor,
    cos_TY: Tensor,
    sin_TY: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> dict[str, Any]:
    tables = {"cos_TY": cos_TY, "sin_TY": sin_TY}
    return {"q_TND": q_TND} | tables | _operands(latent_TZ, rope_key_TY, cache, step)


def _rope_cost(
    out_TND: Tensor,
    q_TND: Tensor,
    latent_TZ: Tensor,
    rope_key_TY: Tensor,
    cos_TY: Tensor,
    sin_TY: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Cost:
    """The FLOPs of the parts; rotated keys go straight to their slots."""
    key_T1Y = rope_key_TY.unsqueeze(1)
    flops = rope.cost((out_TND, key_T1Y), q_TND, key_T1Y, cos_TY, sin_TY).flops
    written = _cost(None, latent_TZ, rope_key_TY, cache, step)
    return cost(flops, (q_TND, cos_TY, sin_TY), (out_TND,)) + written


@op(
    "RopeAndLatentCache",
    cost=_rope_cost,
    operands=_rope_operands,
    in_parts=True,
    products=("q_TND", "rope_key_TY", "cos_TY", "sin_TY"),
)
def rope_and_latent_cache(
    q_TND: Tensor,
    latent_TZ: Tensor,
    rope_key_TY: Tensor,
    cos_TY: Tensor,
    sin_TY: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Tensor:
    """Rotate the first Y values of each query and the rotary keys as `rope` does, and write keys and latents to their
    slots -> queries [T, N, D]."""
    q_TND, key_T1Y = rope(q_TND, rope_key_TY.unsqueeze(1), cos_TY, sin_TY)
    latent_cache(latent_TZ, key_T1Y.squeeze(1), cache, step)
    return q_TND
