"""How the NPU lays out the KV cache and weights, for plans on machines without torch_npu (see `npu`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from atb_models.ops.basic import linear
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import Plane
from atb_models.ops.quantized.npu_chunks import chunk_operand, forget_floats, keep_floats, row_spans, widened
from atb_models.ops.quantized.npu_packing import GROUP_STEP, Conversions, NpuPacking
from atb_models.ops.step import StepInput
from atb_models.ops.table import Backend, Body
from atb_models.ops.weight import Packing, Weight

HEAD_SIZE = 128  # of the attention operator; narrower heads lie padded with zeros
LATENT_ATTENTION = False  # no operation for it yet


def layouts() -> Backend:
    """The shapes of the cache and of weights, and of what works on them."""
    shapes: dict[str, Body] = {"ReshapeAndCache": _reshape_and_cache, "PagedAttention": _paged_attention}
    return Backend(
        {},
        shapes | INTEGER_SHAPES,
        packings=packings(Conversions(_without_device, _without_device)),
        plane_shape=plane_shape,
        latent_attention=LATENT_ATTENTION,
        group_step=GROUP_STEP,
    )


def packings(conversions: Conversions) -> dict[str, Mapping[str, Packing]]:
    """How weights are stored, by operation and argument."""
    rows, stack = NpuPacking(conversions, stacked=False), NpuPacking(conversions, stacked=True)
    experts: Mapping[str, Packing] = {"gate_up_EGH": stack, "down_EHF": stack}
    linear_map: Mapping[str, Packing] = {"weight_OI": rows}
    return {"Linear": linear_map, "QuantLinear": linear_map, "MoeExperts": experts, "QuantMoeExperts": experts}


def _without_device(_: Tensor) -> Tensor:
    raise AssertionError("a layout for plans packs no weights")


def plane_shape(block_size: int, plane: Plane) -> tuple[int, ...]:
    """Of a KV block: [S, M, D] with heads as wide as the operator's, scales as [M, S]; else as it is declared."""
    if plane.heads is None or plane.width > HEAD_SIZE:
        return plane.block_shape(block_size)
    return (plane.heads, block_size) if plane.holds_scales else (block_size, plane.heads, HEAD_SIZE)


def _reshape_and_cache(k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, step: StepInput) -> None:
    """Heads may be narrower than the cache."""
    if cache.k_PSMD.dtype == torch.int8:
        k_TMD, v_TMD = (widened(x, cache.k_PSMD.shape[-1]) for x in (k_TMD, v_TMD))
        _integers = [_quantize(x) for x in (k_TMD, v_TMD)]  # there until the end
        keep_floats(k_TMD, v_TMD, step)


def _paged_attention(q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    if cache.k_PSMD.dtype == torch.int8:
        for span in row_spans(step):
            _floats = [] if span.single else [chunk_operand(name, span, cache, step) for name in ("k", "v")]
        forget_floats(step)
    return torch.empty_like(q_TND)


def _linear(x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    if weight_OI.scale is None:
        return linear.reference(x_TI, weight_OI, bias_O)
    _check_inputs(x_TI, weight_OI)
    return x_TI.new_empty(len(x_TI), weight_OI.shape[0])


def _quantize(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    return x_TI.new_empty(x_TI.shape, dtype=torch.int8), x_TI.new_empty(x_TI.shape[:-1], dtype=torch.float32)


def _quantize_static(x_TI: Tensor, scale: Tensor, offset: Tensor, counts_E: Tensor | None = None) -> Tensor:
    return x_TI.new_empty(x_TI.shape, dtype=torch.int8)


def _quant_matmul(
    x8_TI: Tensor, x_scale_T: Tensor | None, weight_OI: Weight, bias_O: Tensor | None, dtype: torch.dtype
) -> Tensor:
    _check_inputs(x8_TI, weight_OI)
    return x8_TI.new_empty(len(x8_TI), weight_OI.shape[0], dtype=dtype)


def _check_inputs(x_TI: Tensor, weight_OI: Weight) -> None:
    if x_TI.shape[1] != weight_OI.shape[1]:
        raise ValueError(f"rows {tuple(x_TI.shape)} do not go with a weight {weight_OI.shape}")


# Rules for operations on weights of integers, whose definitions read tensors that lie in torch's own order.
INTEGER_SHAPES: dict[str, Body] = {
    "Linear": _linear,
    "Quantize": _quantize,
    "QuantizeStatic": _quantize_static,
    "QuantMatmul": _quant_matmul,
}
