"""Operations of every decoder: embedding, norms, linear maps, the gated activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.ops.cost import Cost, cost, nbytes
from atb_models.ops.table import op
from atb_models.ops.weight import Weight


def _rows_cost(out_LH: Tensor, *args: Tensor) -> Cost:
    """A copy of rows: only those that are wanted are read."""
    return Cost(0, nbytes(out_LH, *(x for x in args if not x.is_floating_point())), nbytes(out_LH))


@op("Embedding", cost=_rows_cost)
def embedding(token_ids_T: Tensor, weight_VH: Tensor) -> Tensor:
    """Rows of `weight_VH` at `token_ids_T` -> [T, H]."""
    return F.embedding(token_ids_T, weight_VH)


def _rms_norm_cost(out_TH: Tensor, x_TH: Tensor, weight_H: Tensor, eps: float) -> Cost:
    return cost(4 * out_TH.numel(), (x_TH, weight_H), (out_TH,))


@op("RmsNorm", cost=_rms_norm_cost)
def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32 (Zhang and Sennrich 2019)."""
    return F.rms_norm(x_TH, weight_H.shape, weight_H, eps)


def _add_rms_norm_cost(
    out: tuple[Tensor, Tensor], x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float
) -> Cost:
    return cost(5 * x_TH.numel(), (x_TH, residual_TH, weight_H), out)


@op("AddRmsNorm", cost=_add_rms_norm_cost)
def add_rms_norm(x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(RmsNorm(x + residual), x + residual): the step of a pre-norm residual stream."""
    sum_TH = x_TH + residual_TH
    return F.rms_norm(sum_TH, weight_H.shape, weight_H, eps), sum_TH


def _square_sums_cost(out_T2: Tensor, q_TND: Tensor, k_TMD: Tensor | None) -> Cost:
    return cost(2 * sum(x.numel() for x in (q_TND, k_TMD) if x is not None), (q_TND, k_TMD), (out_T2,))


@op("SquareSums", cost=_square_sums_cost)
def square_sums(q_TND: Tensor, k_TMD: Tensor | None) -> Tensor:
    """Sums of squares of each token's queries, and of its keys, 0 without these -> [T, 2] float32."""
    sums = [x.flatten(1).float().square().sum(dim=1) for x in (q_TND, k_TMD) if x is not None]
    return torch.stack([*sums, torch.zeros_like(sums[0])][:2], dim=1)


def _norm_by_sums_cost(
    out_TND: Tensor, x_TND: Tensor, sums_TS: Tensor, column: int, width: int, weight_W: Tensor, eps: float
) -> Cost:
    return cost(2 * out_TND.numel(), (x_TND, weight_W), (out_TND,)) + Cost(read=nbytes(sums_TS) / sums_TS.shape[1])


@op("NormBySums", cost=_norm_by_sums_cost)
def norm_by_sums(x_TND: Tensor, sums_TS: Tensor, column: int, width: int, weight_W: Tensor, eps: float) -> Tensor:
    """x / sqrt(sum of squares / width + eps) * weight in float32, the sums in a column -> [T, N, D] in x's dtype.

    RmsNorm over `width` values of which x is a part; W = N * D.
    """
    scale_T11 = (sums_TS[:, column] / width + eps).rsqrt()[:, None, None]
    return (x_TND.float() * scale_T11 * weight_W.float().view(x_TND.shape[1:])).to(x_TND.dtype)


def _clip_cost(out: Tensor, x: Tensor, limit: float) -> Cost:
    return cost(0, (x,), (out,))


@op("Clip", cost=_clip_cost)
def clip(x: Tensor, limit: float) -> Tensor:
    """Values beyond -limit and limit become these."""
    return x.clamp(-limit, limit)


def _linear_cost(out_TO: Tensor, x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Cost:
    flops = 2 * x_TI.numel() * weight_OI.shape[0] + (0 if bias_O is None else out_TO.numel())
    return Cost(flops, nbytes(x_TI, bias_O) + weight_OI.nbytes, nbytes(out_TO))


@op("Linear", cost=_linear_cost)
def linear(x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b -> [T, O]."""
    return F.linear(x_TI, weight_OI.dequantized(x_TI.dtype), bias_O)


def _swiglu_cost(out_TF: Tensor, gate_up_TF: Tensor) -> Cost:
    return cost(5 * out_TF.numel(), (gate_up_TF,), (out_TF,))  # negate, exp, add, divide; multiply


@op("SwiGlu", cost=_swiglu_cost)
def swiglu(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) * up, where the last dimension holds gate then up -> half its width (Shazeer 2020)."""
    gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
    return F.silu(gate_TF).mul_(up_TF)


def _add_cost(out: Tensor, x: Tensor, y: Tensor) -> Cost:
    return cost(out.numel(), (x, y), (out,))


@op("Add", cost=_add_cost)
def add(x: Tensor, y: Tensor) -> Tensor:
    """Elementwise sum."""
    return x + y


@op("SelectRows", cost=_rows_cost)
def select_rows(x_TH: Tensor, rows_L: Tensor) -> Tensor:
    """Rows of `x_TH` at `rows_L` -> [L, H]."""
    return x_TH.index_select(0, rows_L)


def _to_float_cost(out: Tensor, x: Tensor) -> Cost:
    same = x.dtype == torch.float32 and x.is_contiguous()  # returned as it is
    return Cost() if same else cost(0, (x,), (out,))


@op("ToFloat", cost=_to_float_cost)
def to_float(x: Tensor) -> Tensor:
    """The same values in float32, contiguous."""
    return x.to(torch.float32, memory_format=torch.contiguous_format)
