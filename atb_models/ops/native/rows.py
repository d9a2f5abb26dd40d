"""Norms, SwiGLU and the shared expert's gate by the library. Rows may lie anywhere, their elements side by side."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, threads
from atb_models.ops.native.linear import FLOATS
from atb_models.ops.native.structs import FORMATS, NormCall, SharedGateCall, SwigluCall


def rms_norm(library: Library, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32 -> x's shape and dtype.

    x: [T, H], or of more dimensions, such as the heads of queries. Raises ValueError.
    """
    if x_TH.dim() == 2:
        return _norm(library, x_TH, None, weight_H, eps)[0]
    rows = x_TH.reshape(-1, x_TH.shape[-1])
    return _norm(library, rows, None, weight_H, eps)[0].view(x_TH.shape)


def add_rms_norm(
    library: Library, x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(RmsNorm(x + residual), x + residual), the sum rounded to x's dtype before it is normed. Raises ValueError."""
    normed, total = _norm(library, x_TH, residual_TH, weight_H, eps)
    assert total is not None
    return normed, total


def _norm(
    library: Library, x_TH: Tensor, residual_TH: Tensor | None, weight_H: Tensor, eps: float
) -> tuple[Tensor, Tensor | None]:
    given = [x_TH, weight_H] if residual_TH is None else [x_TH, weight_H, residual_TH]
    _check("RmsNorm", *given)
    rows, width = x_TH.shape
    if weight_H.shape != (width,) or (
        residual_TH is not None and (residual_TH.shape != x_TH.shape or residual_TH.dtype != x_TH.dtype)
    ):
        raise ValueError(f"RmsNorm: {[(tuple(x.shape), x.dtype) for x in given]} do not go together")
    out = torch.empty(rows, width, dtype=x_TH.dtype)
    total = None if residual_TH is None else torch.empty_like(out)
    call = NormCall(
        x_TH.data_ptr(),
        None if residual_TH is None else residual_TH.data_ptr(),
        weight_H.data_ptr(),
        out.data_ptr(),
        None if total is None else total.data_ptr(),
        x_TH.stride(0),
        0 if residual_TH is None else residual_TH.stride(0),
        rows,
        width,
        FORMATS[x_TH.dtype],
        FORMATS[weight_H.dtype],
        threads(),
        eps,
    )
    refuse(library.norm(byref(call)), "RmsNorm")
    return out, total


def swiglu(library: Library, gate_up_TF: Tensor) -> Tensor:
    """silu(gate) * up, where the last dimension holds gate then up -> half its width. Raises ValueError."""
    _check("SwiGlu", gate_up_TF)
    rows, both = gate_up_TF.shape
    if both % 2:
        raise ValueError(f"SwiGlu: {tuple(gate_up_TF.shape)} has no two halves")
    out = torch.empty(rows, both // 2, dtype=gate_up_TF.dtype)
    call = SwigluCall(
        gate_up_TF.data_ptr(),
        out.data_ptr(),
        gate_up_TF.stride(0),
        rows,
        both // 2,
        FORMATS[gate_up_TF.dtype],
        threads(),
    )
    refuse(library.swiglu(byref(call)), "SwiGlu")
    return out


def shared_expert_gate(library: Library, shared_TH: Tensor, x_TH: Tensor, weight_1H: Tensor) -> Tensor:
    """shared * sigmoid(x . w) in float32 -> [T, H] in the dtype of both. Raises ValueError."""
    _check("SharedExpertGate", shared_TH, x_TH, weight_1H)
    rows, width = x_TH.shape
    if shared_TH.dtype != x_TH.dtype or shared_TH.shape[0] != rows or weight_1H.shape != (1, width):
        raise ValueError(
            f"SharedExpertGate: {[(tuple(x.shape), x.dtype) for x in (shared_TH, x_TH, weight_1H)]} do not go together"
        )
    out = torch.empty(shared_TH.shape, dtype=shared_TH.dtype)
    call = SharedGateCall(
        shared_TH.data_ptr(),
        x_TH.data_ptr(),
        weight_1H.data_ptr(),
        out.data_ptr(),
        shared_TH.stride(0),
        x_TH.stride(0),
        rows,
        width,
        shared_TH.shape[1],
        FORMATS[x_TH.dtype],
        FORMATS[weight_1H.dtype],
        threads(),
    )
    refuse(library.shared_gate(byref(call)), "SharedExpertGate")
    return out


def _check(name: str, *tensors: Tensor) -> None:
    on_cpu(name, *tensors)
    for tensor in tensors:
        dense(name, tensor)
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name}: a tensor of {tensor.dtype}")
