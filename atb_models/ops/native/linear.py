"""Linear by the library, and weights as it takes them.

A packed weight is a tensor [panels, inputs, 16] of the weight's dtype: 16 outputs side by side (bfloat16: pairs of
inputs of 16 outputs), outputs filled up with zeros to whole panels and inputs to a multiple of 4.
"""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.integers import Integers
from atb_models.ops.native.library import Library, scratch, threads
from atb_models.ops.native.structs import FORMATS, LinearCall, PackCall, PanelWeight

PANEL = 16
FILL = 4
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def packed_shape(outputs: int, inputs: int) -> tuple[int, int, int]:
    """[panels, inputs, 16] of a weight [outputs, inputs]."""
    return -(-outputs // PANEL), -(-inputs // FILL) * FILL, PANEL


def panel_weight(packed: Tensor | Integers, scale: Tensor | None, outputs: int, inputs: int) -> PanelWeight:
    """A weight [outputs, inputs], or a stack of them, as the C side takes it; the tensors may be on meta."""
    if isinstance(packed, Integers):
        return packed.struct()
    at_scale = None if scale is None else scale.data_ptr()
    return PanelWeight(
        data=packed.data_ptr(), scale=at_scale, outputs=outputs, inputs=inputs, format=FORMATS[packed.dtype]
    )


def pack_into(library: Library, weight_OI: Tensor, packed: Tensor, step: int = 1) -> None:
    """Write the panels of `weight_OI` to every `step`-th panel of `packed`; their memories are distinct."""
    outputs, inputs = weight_OI.shape
    on_cpu("pack", weight_OI, packed)
    dense("pack", weight_OI)
    dense("pack", packed, 3)
    if packed.dtype != weight_OI.dtype or tuple(packed[::step].shape) != packed_shape(outputs, inputs):
        raise ValueError(
            f"pack: {tuple(weight_OI.shape)} of {weight_OI.dtype} does not go to every {step}th of the panels"
            f" {tuple(packed.shape)} of {packed.dtype}"
        )
    call = PackCall(
        weight_OI.data_ptr(),
        packed.data_ptr(),
        weight_OI.stride(0),
        outputs,
        inputs,
        step,
        FORMATS[weight_OI.dtype],
        threads(),
    )
    refuse(library.pack(byref(call)), "pack")


def linear(
    library: Library,
    x_TI: Tensor,
    packed: Tensor | Integers,
    outputs: int,
    bias_O: Tensor | None = None,
    scale_O: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x W^T + b -> [T, outputs] of `out_dtype`, x's own unless it is given.

    `packed` is float32, or x's dtype, or int8 with `scale_O`, one float32 for each output; or Integers, which have
    their scales themselves. Rows of x may lie anywhere. Raises ValueError for tensors that do not go together.
    """
    rows, inputs = x_TI.shape
    out_TO = torch.empty(rows, outputs, dtype=out_dtype or x_TI.dtype)
    check(x_TI, packed, outputs, bias_O, scale_O, out_TO.dtype)
    call = LinearCall(
        x_TI.data_ptr(),
        panel_weight(packed, scale_O, outputs, inputs),
        None if bias_O is None else bias_O.data_ptr(),
        out_TO.data_ptr(),
        None,
        x_TI.stride(0),
        outputs,
        rows,
        FORMATS[x_TI.dtype],
        0 if bias_O is None else FORMATS[bias_O.dtype],
        FORMATS[out_TO.dtype],
        threads(),
    )
    if rows:
        call.scratch = scratch(library.linear_scratch(byref(call)))
        refuse(library.linear(byref(call)), "Linear")
    return out_TO


def scratch_floats(library: Library, x_TI: Tensor, packed: Tensor | Integers, outputs: int) -> int:
    """Floats that a call works with; the tensors may be on meta."""
    rows, inputs = x_TI.shape
    weight = panel_weight(packed, None, outputs, inputs)
    call = LinearCall(rows=rows, weight=weight, x_format=FORMATS[x_TI.dtype], threads=threads())
    return int(library.linear_scratch(byref(call))) if rows else 0


def check(
    x_TI: Tensor,
    packed: Tensor | Integers,
    outputs: int,
    bias_O: Tensor | None,
    scale_O: Tensor | None,
    out_dtype: torch.dtype,
) -> None:
    """Raises ValueError for tensors that do not go together."""
    on_cpu("Linear", x_TI)
    dense("Linear", x_TI)
    for vector in (bias_O, scale_O):
        if vector is not None:
            on_cpu("Linear", vector)
            dense("Linear", vector)
    dtype, bias = x_TI.dtype, None if bias_O is None else bias_O.dtype
    if dtype not in FLOATS or out_dtype not in FLOATS or bias not in (None, *FLOATS):
        raise ValueError(f"Linear: x of {dtype}, a bias of {bias} and a result of {out_dtype}")
    if isinstance(packed, Integers):
        packed.check("Linear")
        fits = (packed.outputs, packed.inputs) == (outputs, x_TI.shape[1]) and scale_O is None
    else:
        _check_stored(dtype, packed, None if scale_O is None else scale_O.dtype)
        fits = packed.shape == packed_shape(outputs, x_TI.shape[1])
    if (
        not fits
        or (bias_O is not None and bias_O.shape != (outputs,))
        or (scale_O is not None and scale_O.shape != (outputs,))
    ):
        stored = packed.data if isinstance(packed, Integers) else packed
        raise ValueError(
            f"Linear: x {tuple(x_TI.shape)}, a packed weight {tuple(stored.shape)} and {outputs} outputs do not go"
            " together, or the bias or the scales do not"
        )


def _check_stored(dtype: torch.dtype, packed: Tensor, scales: torch.dtype | None) -> None:
    on_cpu("Linear", packed)
    dense("Linear", packed, 3)
    stored = packed.dtype
    if stored not in (dtype, torch.float32, torch.int8) or scales != (torch.float32 if stored == torch.int8 else None):
        raise ValueError(f"Linear: x of {dtype} beside a weight of {stored} with scales of {scales}")
