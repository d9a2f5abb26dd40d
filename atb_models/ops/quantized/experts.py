"""The routed experts where int8 activations meet int8 weights: see `ops.quantized.linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from atb_models.ops.basic import swiglu
from atb_models.ops.cost import Cost, cost, nbytes
from atb_models.ops.moe import (
    count_expert_tokens,
    expert_spans,
    experts_cost,
    grouped_matmul,
    moe_finalize_routing,
    moe_init_routing,
    touched_of,
)
from atb_models.ops.quantized.linear import quant_matmul, quantize, quantized_for
from atb_models.ops.table import op
from atb_models.ops.weight import Weight


def _route_scales_cost(out_R: Tensor, scale_T: Tensor, rows_TK: Tensor) -> Cost:
    return cost(0, (scale_T, rows_TK), (out_R,))


@op("MoeRouteScales", cost=_route_scales_cost)
def moe_route_scales(scale_T: Tensor, rows_TK: Tensor) -> Tensor:
    """The scale of each routed row -> [R]: that of its token. rows_TK: see MoeInitRouting."""
    scale_TK = scale_T.unsqueeze(1).expand(rows_TK.shape)
    return scale_T.new_empty(rows_TK.numel()).scatter_(0, rows_TK.flatten(), scale_TK.flatten())


def _quant_grouped_matmul_cost(
    out_RO: Tensor,
    x8_RI: Tensor,
    x_scale_R: Tensor | None,
    weight_EOI: Weight,
    counts_E: Tensor,
    top_k: int,
    dtype: torch.dtype,
) -> Cost:
    experts, outputs, _ = weight_EOI.shape
    weights = touched_of(counts_E, x8_RI.shape[0], top_k) * (weight_EOI.nbytes / experts)
    return Cost(2 * x8_RI.numel() * outputs, nbytes(x8_RI, x_scale_R, counts_E) + weights, nbytes(out_RO))


def _quant_grouped_matmul_shape(
    x8_RI: Tensor,
    x_scale_R: Tensor | None,
    weight_EOI: Weight,
    counts_E: Tensor,
    top_k: int,
    dtype: torch.dtype,
) -> Tensor:
    """The body reads the counts, which meta tensors do not have. Its workspace: one expert gets every token."""
    experts, outputs, inputs = weight_EOI.shape
    if x8_RI.shape[1] != inputs or counts_E.shape != (experts,) or x8_RI.shape[0] % top_k or x8_RI.dtype != torch.int8:
        raise ValueError(
            f"rows {tuple(x8_RI.shape)} of {x8_RI.dtype}, {top_k} a token, do not go with experts {weight_EOI.shape}"
            f" and counts {tuple(counts_E.shape)}"
        )
    y_RO = x8_RI.new_empty(x8_RI.shape[0], outputs, dtype=dtype)
    if weight_EOI.layout.is_plain:
        tokens = slice(0, x8_RI.shape[0] // top_k)
        scale = None if x_scale_R is None else x_scale_R[tokens]
        _workspace = quant_matmul.reference(x8_RI[tokens], scale, weight_EOI.matrix(0), None, dtype)
    return y_RO


@op(
    "QuantGroupedMatmul",
    cost=_quant_grouped_matmul_cost,
    shape=_quant_grouped_matmul_shape,
    products=("x8_RI", "weight_EOI"),
)
def quant_grouped_matmul(
    x8_RI: Tensor,
    x_scale_R: Tensor | None,
    weight_EOI: Weight,
    counts_E: Tensor,
    top_k: int,
    dtype: torch.dtype,
) -> Tensor:
    """QuantMatmul for each expert's own rows, `counts_E` rows for expert e in order -> [R, O] of `dtype`."""
    y_RO = x8_RI.new_empty(x8_RI.shape[0], weight_EOI.shape[1], dtype=dtype)
    for expert, start, stop in expert_spans(counts_E):
        scale = None if x_scale_R is None else x_scale_R[start:stop]
        y_RO[start:stop] = quant_matmul.reference(x8_RI[start:stop], scale, weight_EOI.matrix(expert), None, dtype)
    return y_RO


def quantizing_flops(gate_up_EGH: Weight, down_EHF: Weight, tokens: int, top_k: int) -> int:
    """Of making int8 what the two products take so: a token's x once, what is between the products for each row."""
    (_, hidden, width), rows = down_EHF.shape, tokens * top_k
    routed = {"float": 0, "token": tokens, "static": 2 * rows}[gate_up_EGH.layout.activations]
    between = {"float": 0, "token": rows, "static": 2 * rows}[down_EHF.layout.activations]
    return routed * hidden + between * width


def _quant_experts_cost(
    out_TH: Tensor,
    x_TH: Tensor,
    gate_up_EGH: Weight,
    down_EHF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counter_E: Tensor | None = None,
) -> Cost:
    products = experts_cost(out_TH, x_TH, gate_up_EGH, down_EHF, weights_TK, experts_TK, counter_E)
    return products + Cost(quantizing_flops(gate_up_EGH, down_EHF, *experts_TK.shape))


@op("QuantMoeExperts", cost=_quant_experts_cost, in_parts=True, products=("gate_up_EGH", "down_EHF"))
def quant_moe_experts(
    x_TH: Tensor,
    gate_up_EGH: Weight,
    down_EHF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counter_E: Tensor | None = None,
) -> Tensor:
    """MoeExperts where one of the two products, or both, takes int8 activations.

    With scales made at run time x is quantised once a token, what the second product takes once a row.
    """
    by_token, top_k, x_scale_T = gate_up_EGH.layout.activations == "token", experts_TK.shape[1], None
    routed_TH = x_TH
    if by_token:
        routed_TH, x_scale_T = quantize(x_TH)
    routed_RH, rows_TK, counts_E = moe_init_routing(routed_TH, experts_TK, gate_up_EGH.shape[0])
    if counter_E is not None:
        count_expert_tokens(counter_E, counts_E)
    if x_scale_T is None:
        gate_up_RG = _expert_products(routed_RH, gate_up_EGH, counts_E, top_k)
    else:
        x_scale_R = moe_route_scales(x_scale_T, rows_TK)
        gate_up_RG = quant_grouped_matmul(routed_RH, x_scale_R, gate_up_EGH, counts_E, top_k, x_TH.dtype)
    down_RH = _expert_products(swiglu(gate_up_RG), down_EHF, counts_E, top_k)
    return moe_finalize_routing(down_RH, rows_TK, weights_TK)


def _expert_products(x_RI: Tensor, weight_EOI: Weight, counts_E: Tensor, top_k: int) -> Tensor:
    """Rows of floats times their experts' weights, as the weights' layout says."""
    if weight_EOI.layout.activations == "float":
        return grouped_matmul(x_RI, weight_EOI, counts_E, top_k)
    x8_RI, x_scale_R = quantized_for(weight_EOI, x_RI, counts_E)
    return quant_grouped_matmul(x8_RI, x_scale_R, weight_EOI, counts_E, top_k, x_RI.dtype)
