"""What the sublayers of a layer share: the rows of a call, and what is kept from call to call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ctypes import Structure, byref
from typing import Any

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import grown_scratch, held_scratch, threads
from atb_models.ops.native.linear import FLOATS
from atb_models.ops.native.structs import MORE_SCRATCH, SublayerCall
from atb_models.ops.sublayers import Norm


class BoundSublayer:
    """A sublayer's tensors as the C side takes them: checked once, and again where one of them lies elsewhere."""

    def __init__(self, layer: Structure, tensors: Iterable[Tensor | None], hidden: int, dtype: torch.dtype) -> None:
        self.layer, self.at_layer = layer, byref(layer)
        self.hidden, self.dtype = hidden, dtype
        self.tensors = [tensor for tensor in tensors if tensor is not None]
        self._addresses = self._lie()

    def holds(self) -> bool:
        """Whether all tensors still lie where they lay."""
        return self._lie() == self._addresses

    def _lie(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors]


def run(
    name: str,
    function: Callable[..., int],
    bound: BoundSublayer,
    x_TH: Tensor | None,
    residual_TH: Tensor,
    *more: Any,
) -> tuple[Tensor, Tensor]:
    """Call `function(layer, *more, rows)` -> its result and the sum, each [T, H].

    Raises ValueError for rows that do not go with the layer, and for what the C side refuses.
    """
    _check_rows(name, bound, x_TH, residual_TH)
    out_TH = torch.empty_like(residual_TH, memory_format=torch.contiguous_format)
    if x_TH is None:
        sum_TH = residual_TH
        call = SublayerCall(None, residual_TH.data_ptr(), out_TH.data_ptr(), None, *held_scratch(), 0)
    else:
        sum_TH = torch.empty_like(out_TH)
        pointers = x_TH.data_ptr(), residual_TH.data_ptr(), out_TH.data_ptr(), sum_TH.data_ptr()
        call = SublayerCall(*pointers, *held_scratch(), x_TH.stride(0))
    call.residual_row, call.tokens, call.threads = residual_TH.stride(0), residual_TH.shape[0], threads()
    if not call.tokens:
        return out_TH, sum_TH
    status = function(bound.at_layer, *more, byref(call))
    if status == MORE_SCRATCH:
        call.scratch, call.scratch_floats = grown_scratch(call.scratch_floats)
        status = function(bound.at_layer, *more, byref(call))
    if status:
        refuse(status, name)
    return out_TH, sum_TH


def scratch_floats(function: Callable[..., int], layer: Structure, tokens: int, *more: Any) -> int:
    """Floats that a call with so many tokens works with; the layer's tensors may be on meta."""
    call = SublayerCall(tokens=tokens, threads=threads())
    if tokens:
        function(byref(layer), *more, byref(call))
    return int(call.scratch_floats)


def result_shapes(name: str, x_TH: Tensor | None, residual_TH: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """The results of a call on meta tensors. Raises ValueError for rows that do not go with the layer."""
    if residual_TH.shape[1] != hidden or (x_TH is not None and x_TH.shape != residual_TH.shape):
        given = [tuple(x.shape) for x in (x_TH, residual_TH) if x is not None]
        raise ValueError(f"{name}: rows {given} do not go with a layer of {hidden}")
    out_TH = residual_TH.new_empty(residual_TH.shape)
    return out_TH, residual_TH if x_TH is None else residual_TH.new_empty(residual_TH.shape)


def _check_rows(name: str, bound: BoundSublayer, x_TH: Tensor | None, residual_TH: Tensor) -> None:
    for rows in (residual_TH,) if x_TH is None else (residual_TH, x_TH):
        if not (rows.is_cpu and rows.dtype is bound.dtype and rows.shape == (residual_TH.shape[0], bound.hidden)):
            raise ValueError(
                f"{name}: rows {tuple(rows.shape)} of {rows.dtype} on {rows.device} do not go with a residual stream"
                f" {tuple(residual_TH.shape)} of {residual_TH.dtype} and a layer of {bound.hidden} in {bound.dtype}"
            )
        dense(name, rows)


def check_norm(name: str, norm: Norm, hidden: int) -> None:
    """Raises ValueError for a norm that the C side does not take."""
    check_vector(name, "norm", norm.weight_H, (hidden,))


def check_vector(
    name: str, what: str, vector: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOATS
) -> None:
    """Raises ValueError for a tensor that lies elsewhere, or is of another shape or data type."""
    on_cpu(name, vector)
    dense(name, vector, vector.dim())
    if vector.shape != shape or vector.dtype not in dtypes:
        raise ValueError(f"{name}: the {what} is {tuple(vector.shape)} of {vector.dtype}, not {shape}")


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
