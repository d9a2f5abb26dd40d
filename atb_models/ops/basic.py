"""Operations of every decoder: embedding, norms, linear maps, the gated activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.ops.table import op


@op("Embedding")
def embedding(token_ids_T: Tensor, weight_VH: Tensor) -> Tensor:
    """Rows of `weight_VH` at `token_ids_T` -> [T, H]."""
    return F.embedding(token_ids_T, weight_VH)


@op("RmsNorm")
def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32 (Zhang and Sennrich 2019)."""
    return F.rms_norm(x_TH, weight_H.shape, weight_H, eps)


@op("AddRmsNorm")
def add_rms_norm(x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(RmsNorm(x + residual), x + residual): the step of a pre-norm residual stream."""
    sum_TH = x_TH + residual_TH
    return F.rms_norm(sum_TH, weight_H.shape, weight_H, eps), sum_TH


@op("Linear")
def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b -> [T, O]."""
    return F.linear(x_TI, weight_OI, bias_O)


@op("SwiGlu")
def swiglu(gate_up_TF: Tensor) -> Tensor:
    """silu(gate) * up, where the last dimension holds gate then up -> half its width (Shazeer 2020)."""
    gate_TF, up_TF = gate_up_TF.chunk(2, dim=-1)
    return F.silu(gate_TF).mul_(up_TF)


@op("Add")
def add(x: Tensor, y: Tensor) -> Tensor:
    """Elementwise sum."""
    return x + y


@op("SelectRows")
def select_rows(x_TH: Tensor, rows_L: Tensor) -> Tensor:
    """Rows of `x_TH` at `rows_L` -> [L, H]."""
    return x_TH.index_select(0, rows_L)


@op("ToFloat")
def to_float(x: Tensor) -> Tensor:
    """The same values in float32, contiguous."""
    return x.to(torch.float32, memory_format=torch.contiguous_format)
