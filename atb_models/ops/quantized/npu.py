"""Products with weights of integers on the NPU: see `npu_packing` for how these lie.

Float activations meet integers that the operator makes floats. Int8 activations meet int8 weights: their sums are
integers, which the operator scales.
"""

from __future__ import annotations

from functools import cache

import torch
import torch_npu
from torch import Tensor

from atb_models.ops import basic
from atb_models.ops.quantized.npu_packing import Conversions, in_groups
from atb_models.ops.table import Body
from atb_models.ops.weight import Weight

COUNTS = 1  # group_list_type: counts, not running totals
OF_ROWS = -2  # axis of npu_quantize
CONVERSIONS = Conversions(
    pack_int4=lambda weight_IO: torch_npu.npu_convert_weight_to_int4pack(weight_IO),
    quant_param=lambda scale_O: torch_npu.npu_trans_quant_param(scale_O),
)


def linear(x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """torch's product is the vendor's own for floats."""
    layout, scale, offset = weight_OI.layout, weight_OI.scale, weight_OI.offset
    if scale is None:
        return basic.linear.reference(x_TI, weight_OI, bias_O)
    by_rows = layout.bits == 8
    if by_rows and scale.dim() == 2:
        scale, offset = scale.t(), None if offset is None else offset.t()
    if bias_O is not None and x_TI.dtype == torch.bfloat16:
        bias_O = bias_O.float()
    return torch_npu.npu_weight_quant_batchmatmul(
        x_TI,
        weight_OI.data.t() if by_rows else weight_OI.data,
        scale,
        offset,
        bias=bias_O,
        antiquant_group_size=layout.unit if in_groups(layout) else 0,
    )


def grouped_matmul(x_RI: Tensor, weight_EOI: Weight, counts_E: Tensor, top_k: int) -> Tensor:
    """The operator wants offsets of integers where there are none."""
    scale, offset = weight_EOI.scale, weight_EOI.offset
    if scale is not None and offset is None:
        offset = _zeros(scale.shape, scale.dtype, scale.device)
    return torch_npu.npu_grouped_matmul(
        [x_RI],
        [weight_EOI.data],
        antiquant_scale=None if scale is None else [scale],
        antiquant_offset=None if offset is None else [offset],
        group_list=counts_E,
        group_list_type=COUNTS,
        group_type=0,  # groups of rows
        split_item=2,  # one result for all of them
    )[0]


@cache
def _zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same for all layers."""
    return torch.zeros(shape, dtype=dtype, device=device)


def quantize(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """A row of zeros gets the scale 0."""
    x8_TI, scale_T = torch_npu.npu_dynamic_quant(x_TI)
    return x8_TI, scale_T


def quantize_static(x_TI: Tensor, scale: Tensor, offset: Tensor, counts_E: Tensor | None = None) -> Tensor:
    """scale: the reciprocal of the checkpoint's."""
    if counts_E is None:
        return torch_npu.npu_quantize(x_TI, scale, offset, torch.qint8, -1, False)
    rows_R = torch.arange(len(x_TI), device=x_TI.device)
    expert_R = torch.searchsorted(counts_E.cumsum(0), rows_R, right=True)
    scale_R, offset_R = scale.flatten()[expert_R], offset.flatten()[expert_R]
    return torch_npu.npu_quantize(x_TI, scale_R, offset_R, torch.qint8, OF_ROWS, False)


def quant_matmul(
    x8_TI: Tensor, x_scale_T: Tensor | None, weight_OI: Weight, bias_O: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """A bias of floats goes beside scales of rows, but not beside the integers' own."""
    integers_O = weight_OI.quant_bias
    assert weight_OI.scale is not None and (integers_O is None or x_scale_T is None)
    y_TO = torch_npu.npu_quant_matmul(
        x8_TI,
        weight_OI.data,
        weight_OI.scale,
        pertoken_scale=x_scale_T,
        bias=integers_O if bias_O is None or integers_O is not None else bias_O.float(),
        output_dtype=dtype,
    )
    return y_TO if integers_O is None or bias_O is None else y_TO + bias_O


def moe_route_scales(scale_T: Tensor, rows_TK: Tensor) -> Tensor:
    """Row numbers are int32 here, and scatter takes int64."""
    scale_TK = scale_T.unsqueeze(1).expand(rows_TK.shape)
    return scale_T.new_empty(rows_TK.numel()).scatter_(0, rows_TK.flatten().long(), scale_TK.flatten())


def quant_grouped_matmul(
    x8_RI: Tensor,
    x_scale_R: Tensor | None,
    weight_EOI: Weight,
    counts_E: Tensor,
    top_k: int,
    dtype: torch.dtype,
) -> Tensor:
    assert weight_EOI.scale is not None
    return torch_npu.npu_grouped_matmul(
        [x8_RI],
        [weight_EOI.data],
        bias=None if weight_EOI.quant_bias is None else [weight_EOI.quant_bias],
        scale=[weight_EOI.scale],
        per_token_scale=None if x_scale_R is None else [x_scale_R],
        group_list=counts_E,
        group_list_type=COUNTS,
        group_type=0,
        split_item=2,
        output_dtype=dtype,
    )[0]


BODIES: dict[str, Body] = {
    "Linear": linear,
    "GroupedMatmul": grouped_matmul,
    "Quantize": quantize,
    "QuantizeStatic": quantize_static,
    "QuantMatmul": quant_matmul,
    "MoeRouteScales": moe_route_scales,
    "QuantGroupedMatmul": quant_grouped_matmul,
}
