"""Products of int8 activations with int8 weights. Sums are exact integers; scales are applied to them in float32.

A weight's layout says what its activations are. "token": each row of x has a scale, its largest magnitude / 127, made
when the row is there (Quantize). "static": the checkpoint has one scale and one offset for all rows (QuantizeStatic).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.ops.cost import Cost, nbytes
from atb_models.ops.table import op
from atb_models.ops.weight import Weight

LARGEST = 127  # of an activation with a scale of its own row
# Inputs whose products a float32 sums exactly, in any order: 128 * 128 * 1024 = 2^24.
EXACT_INPUTS = 1024


def _quantize_cost(out: tuple[Tensor, Tensor], x_TI: Tensor) -> Cost:
    return Cost(x_TI.numel(), nbytes(x_TI), nbytes(*out))


@op("Quantize", cost=_quantize_cost)
def quantize(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as integers with a scale each -> (int8 [T, I], float32 [T]).

    scale = max |x| / 127, 1 for a row of zeros; the quotients x / scale are rounded to the nearest, halves to even.
    """
    x_TI = x_TI.float()
    scale_T = torch.maximum(x_TI.amax(-1), -x_TI.amin(-1)) / LARGEST
    scale_T = torch.where(scale_T == 0, 1.0, scale_T)
    quotients_TI = (x_TI / scale_T.unsqueeze(-1)).round_().clamp_(-LARGEST, LARGEST)
    return quotients_TI.to(torch.int8), scale_T


def _quantize_static_cost(
    out_TI: Tensor, x_TI: Tensor, scale: Tensor, offset: Tensor, counts_E: Tensor | None = None
) -> Cost:
    return Cost(2 * x_TI.numel(), nbytes(x_TI, scale, offset, counts_E), nbytes(out_TI))


@op("QuantizeStatic", cost=_quantize_static_cost)
def quantize_static(x_TI: Tensor, scale: Tensor, offset: Tensor, counts_E: Tensor | None = None) -> Tensor:
    """round(x / scale + offset) within -128 .. 127 -> int8 [T, I]; halves to even.

    scale, offset: float32 [1]; with `counts_E` [E, 1], for the rows of each expert in order.
    """
    if counts_E is not None:
        scale, offset = (values.repeat_interleave(counts_E, 0, output_size=len(x_TI)) for values in (scale, offset))
    return (x_TI.float() / scale + offset).round_().clamp_(-128, 127).to(torch.int8)


def _quant_matmul_cost(
    out_TO: Tensor,
    x8_TI: Tensor,
    x_scale_T: Tensor | None,
    weight_OI: Weight,
    bias_O: Tensor | None,
    dtype: torch.dtype,
) -> Cost:
    flops = 2 * x8_TI.numel() * weight_OI.shape[0] + (0 if bias_O is None else out_TO.numel())
    return Cost(flops, nbytes(x8_TI, x_scale_T, bias_O) + weight_OI.nbytes, nbytes(out_TO))


@op("QuantMatmul", cost=_quant_matmul_cost, products=("x8_TI", "weight_OI"))
def quant_matmul(
    x8_TI: Tensor, x_scale_T: Tensor | None, weight_OI: Weight, bias_O: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(x8 (W - offset)^T + quant_bias) * x_scale * scale + b -> [T, O] of `dtype`, from integers on in float32."""
    return _product(x8_TI, x_scale_T, weight_OI, bias_O).to(dtype)


def _product(x8_TI: Tensor, x_scale_T: Tensor | None, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """quant_matmul before its result is rounded: float32."""
    sums_TO = integer_sums(x8_TI, weight_OI.integers())
    if weight_OI.quant_bias is not None:
        sums_TO += weight_OI.quant_bias
    y_TO = sums_TO.float()
    if weight_OI.offset is not None:
        y_TO -= x8_TI.sum(-1, dtype=torch.int32).unsqueeze(-1) * weight_OI.offset
    if x_scale_T is not None:
        y_TO *= x_scale_T.unsqueeze(-1)
    assert weight_OI.scale is not None
    y_TO *= weight_OI.scale
    return y_TO if bias_O is None else y_TO.add_(bias_O)


def integer_sums(x8_TI: Tensor, weight8_OI: Tensor) -> Tensor:
    """x W^T of int8 values -> int32 [T, O], exact: float32 products of so few inputs that their sums are integers."""
    sums_TO = torch.zeros(len(x8_TI), len(weight8_OI), dtype=torch.int32, device=x8_TI.device)
    for x_TI, weight_OI in zip(x8_TI.split(EXACT_INPUTS, 1), weight8_OI.split(EXACT_INPUTS, 1), strict=True):
        sums_TO += F.linear(x_TI.float(), weight_OI.float()).to(torch.int32)
    return sums_TO


def _quant_linear_cost(out_TO: Tensor, x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Cost:
    flops = (2 * weight_OI.shape[0] + 1) * x_TI.numel() + (0 if bias_O is None else out_TO.numel())
    return Cost(flops, nbytes(x_TI, bias_O) + weight_OI.nbytes, nbytes(out_TO))


@op("QuantLinear", cost=_quant_linear_cost, in_parts=True, products=("weight_OI",))
def quant_linear(x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b -> [T, O] in x's dtype, x being made int8 as the weight's layout says."""
    x8_TI, x_scale_T = quantized_for(weight_OI, x_TI)
    return quant_matmul(x8_TI, x_scale_T, weight_OI, bias_O, x_TI.dtype)


def quantized_for(weight: Weight, x_TI: Tensor, counts_E: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x as the integers that meet this weight, and the scales of its rows unless they are static."""
    if weight.layout.activations == "token":
        return quantize(x_TI)
    assert weight.input_scale is not None
    return quantize_static(x_TI, weight.input_scale, weight.input_offset, counts_E), None
