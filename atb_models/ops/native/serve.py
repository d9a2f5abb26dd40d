"""The table's operations by the library: what serves a CPU that has a level of it.

Tensors that the library does not take go to torch: a weight that it does not pack (see `packing.takes`), such as a tied
head; a cache of other planes than K and V. On meta tensors each body gives its result and the library's workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from atb_models.ops import basic, cpu_torch, moe
from atb_models.ops.attention import paged_attention, rope_and_cache, rope_tables
from atb_models.ops.gating import moe_gating
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native import attention, experts, gating, linear, rope, rows, top_logits
from atb_models.ops.native.latent import serve as latent
from atb_models.ops.native.library import Library
from atb_models.ops.native.packing import GateUpPanels, Panels, operand
from atb_models.ops.native.planes import MOST_BYTES, has_planes, scale_planes
from atb_models.ops.native.sublayers.attention import attention_sublayer, attention_sublayer_shape
from atb_models.ops.native.sublayers.decoder import decoder
from atb_models.ops.native.sublayers.feed_forward import feed_forward_sublayer, feed_forward_sublayer_shape
from atb_models.ops.quantized.experts import quant_moe_experts
from atb_models.ops.quantized.linear import quant_linear
from atb_models.ops.step import StepInput
from atb_models.ops.table import Backend, Body
from atb_models.ops.weight import Packing, Weight


@cache
def native_backend(library: Library) -> Backend:
    """What the library serves."""
    bodies: dict[str, Callable[..., Any]] = {
        "Linear": _packed_or(cpu_torch.linear, _linear),
        "QuantLinear": _packed_or(quant_linear.reference, _linear),
        "Router": _router,
        "MoeGating": gating.moe_gating,
        "MoeExperts": _packed_or(moe.moe_experts.reference, _experts),
        "QuantMoeExperts": _packed_or(quant_moe_experts.reference, _experts),
        "AttentionSublayer": attention_sublayer,
        "FeedForwardSublayer": feed_forward_sublayer,
        "Decoder": decoder,
        "RopeTables": rope.rope_tables,
        "RopeAndCache": _rope_and_cache,
        "PagedAttention": _attention,
        "RmsNorm": rows.rms_norm,
        "AddRmsNorm": rows.add_rms_norm,
        "SwiGlu": rows.swiglu,
        "SharedExpertGate": rows.shared_expert_gate,
        "TopLogits": top_logits.top_logits,
        **latent.BODIES,
    }
    shapes: dict[str, Callable[..., Any]] = {
        "Linear": _packed_or(cpu_torch.linear, _linear_shape),
        "QuantLinear": _packed_or(quant_linear.reference, _linear_shape),
        "Router": _router_shape,
        "MoeExperts": _packed_or(moe.moe_experts.reference, _experts_shape),
        "QuantMoeExperts": _packed_or(quant_moe_experts.reference, _experts_shape),
        "AttentionSublayer": attention_sublayer_shape,
        "FeedForwardSublayer": feed_forward_sublayer_shape,
        "RopeTables": _like(rope_tables.reference),
        "RopeAndCache": _rope_and_cache_shape,
        "PagedAttention": _attention_shape,
        "MoeGating": _like(moe_gating.reference),
        "RmsNorm": _like(basic.rms_norm.reference),
        "AddRmsNorm": _like(basic.add_rms_norm.reference),
        "SwiGlu": _like(basic.swiglu.reference),
        "SharedExpertGate": _like(moe.shared_expert_gate.reference),
        "TopLogits": _top_logits_shape,
        **latent.SHAPES,
    }
    panels = Panels(library)
    of_experts: Mapping[str, Packing] = {"gate_up_EGH": GateUpPanels(library), "down_EHF": panels}
    packings: Mapping[str, Mapping[str, Packing]] = {
        "Linear": {"weight_OI": panels},
        "QuantLinear": {"weight_OI": panels},
        "Router": {"weight_EH": panels},
        "MoeExperts": of_experts,
        "QuantMoeExperts": of_experts,
    }
    bound: dict[str, Body] = {name: partial(body, library) for name, body in bodies.items()}
    return Backend(bound, {name: partial(rule, library) for name, rule in shapes.items()}, packings)


def _packed_or(reference: Callable[..., Tensor], native: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`native` for a packed weight, which is the second operand; torch has the others."""

    def body(library: Library, x: Tensor, weight: Weight, *more: Any) -> Tensor:
        return reference(x, weight, *more) if weight.layout.is_plain else native(library, x, weight, *more)

    return body


def _linear(library: Library, x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    packed, scale_O = operand(weight_OI)
    return linear.linear(library, x_TI, packed, weight_OI.shape[0], bias_O, scale_O)


def _linear_shape(library: Library, x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    _need(x_TI.shape[1] == weight_OI.shape[1], x_TI, weight_OI)
    floats = linear.scratch_floats(library, x_TI, operand(weight_OI)[0], weight_OI.shape[0])
    _workspace = x_TI.new_empty(floats, dtype=torch.float32)
    return x_TI.new_empty(x_TI.shape[0], weight_OI.shape[0])


def _router(library: Library, x_TH: Tensor, weight_EH: Weight) -> Tensor:
    if weight_EH.layout.is_plain:
        return moe.router.reference(x_TH, weight_EH)
    return linear.linear(library, x_TH, weight_EH.data, weight_EH.shape[0], out_dtype=torch.float32)


def _router_shape(library: Library, x_TH: Tensor, weight_EH: Weight) -> Tensor:
    _need(x_TH.shape[1] == weight_EH.shape[1], x_TH, weight_EH)
    return x_TH.new_empty(x_TH.shape[0], weight_EH.shape[0], dtype=torch.float32)


def _experts(
    library: Library,
    x_TH: Tensor,
    gate_up_EGH: Weight,
    down_EHF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counter_E: Tensor | None = None,
) -> Tensor:
    (gate_up, gate_up_scale), (down, down_scale) = operand(gate_up_EGH), operand(down_EHF)
    width = down_EHF.shape[2]
    return experts.experts(
        library, x_TH, experts_TK, weights_TK, gate_up, down, width, gate_up_scale, down_scale, counter_E
    )


def _experts_shape(
    library: Library,
    x_TH: Tensor,
    gate_up_EGH: Weight,
    down_EHF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counter_E: Tensor | None = None,
) -> Tensor:
    num_experts, hidden, width = down_EHF.shape
    fits = x_TH.shape[1] == hidden and gate_up_EGH.shape == (num_experts, 2 * width, hidden)
    _need(fits and weights_TK.shape == experts_TK.shape, x_TH, gate_up_EGH, down_EHF, weights_TK, experts_TK)
    if counter_E is not None:
        counter_E.add_(counter_E.new_empty(num_experts))
    packed = operand(gate_up_EGH)[0], operand(down_EHF)[0]
    floats = experts.scratch_floats(library, x_TH, *packed, width, experts_TK.shape[1])
    _workspace = x_TH.new_empty(floats, dtype=torch.float32)
    return torch.empty_like(x_TH)


def _rope_and_cache(
    library: Library,
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Tensor:
    if not _has_rope_and_cache(q_TND, cache):
        return rope_and_cache.reference(q_TND, k_TMD, v_TMD, cos_TD, sin_TD, cache, step)
    planes = cache.k_PSMD, cache.v_PSMD
    return rope.rope_and_cache(library, q_TND, k_TMD, v_TMD, cos_TD, sin_TD, *planes, step.slots_T, scale_planes(cache))


def _rope_and_cache_shape(
    library: Library,
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Tensor:
    if not _has_rope_and_cache(q_TND, cache):
        return rope_and_cache.reference(q_TND, k_TMD, v_TMD, cos_TD, sin_TD, cache, step)
    rope.check_shapes(q_TND, k_TMD, v_TMD, cos_TD, sin_TD, cache.k_PSMD, cache.v_PSMD, step.slots_T)
    for plane in cache.values():
        plane.zero_()  # on meta tensors: which planes are written
    return q_TND.new_empty(q_TND.shape)


def _has_rope_and_cache(q_TND: Tensor, cache: LayerCache) -> bool:
    """Whether the library has a form for these planes: K and V of one width, in the dtype of the queries or in int8."""
    if not has_planes(cache, q_TND.dtype) or cache.k_PSMD.shape != cache.v_PSMD.shape:
        return False
    return cache.k_PSMD.dtype != torch.int8 or q_TND.shape[2] <= MOST_BYTES


def _attention(library: Library, q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    if not _has_attention(q_TND, cache):
        return paged_attention.reference(q_TND, cache, step, scale)
    return attention.paged_attention(
        library, q_TND, cache.k_PSMD, cache.v_PSMD, step.block_table_BC, step.query_starts_B, step.kv_lens_B, scale,
        scale_planes(cache),
    )  # fmt: skip


def _attention_shape(library: Library, q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    if not _has_attention(q_TND, cache):
        return paged_attention.reference(q_TND, cache, step, scale)
    heads, kv_heads = q_TND.shape[1], cache.k_PSMD.shape[2]
    fits = cache.k_PSMD.shape == cache.v_PSMD.shape and heads % kv_heads == 0
    _need(fits and q_TND.shape[2] == cache.k_PSMD.shape[3], q_TND, cache.k_PSMD, cache.v_PSMD)
    floats = attention.scratch_floats(library, q_TND, cache.k_PSMD, step.query_lens, step.kv_lens)
    _workspace = q_TND.new_empty(floats, dtype=torch.float32)
    return torch.empty_like(q_TND)


def _top_logits_shape(library: Library, logits_LW: Tensor, count: int, first: int) -> Tensor:
    return logits_LW.new_empty(len(logits_LW), count + 1, dtype=torch.int64)


def _has_attention(q_TND: Tensor, cache: LayerCache) -> bool:
    """Whether the library has a form for these planes."""
    return has_planes(cache, q_TND.dtype) and q_TND.shape[2] <= attention.MAX_HEAD_DIM


def _like(body: Body) -> Callable[..., Any]:
    """The shape rule of an operation without a workspace: the reference's result on meta tensors."""
    return lambda library, *args: body(*args)


def _need(fits: bool, *given: Tensor | Weight) -> None:
    if not fits:
        raise ValueError(f"shapes {[tuple(x.shape) for x in given]} do not go together")
