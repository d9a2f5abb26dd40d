"""Weights that the library multiplies as integers, beside floats or int8 activations.

w = (q - offset) * scale. A packed weight is an int8 tensor [panels, inputs, 8] of 4 bits or [panels, inputs, 16] of
8: in a panel the integers of 16 outputs, in the order of the level's instructions. Inputs are filled up to a multiple
of 8, or of 4 where the integers have 8 bits, outputs to whole panels. Its scales, offsets and integer biases lie in
panels too, [panels, units, 16] or, where whole rows have one, [panels, 16]; of a stack all have E in front.
"""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, threads
from atb_models.ops.native.structs import ACTIVATIONS, FORMAT_I4, FORMAT_I8_DOTS, PackCall, PanelWeight
from atb_models.ops.weight import Activations

PANEL, UNIT = 16, 8
_FILL = {4: 8, 8: 4}
_FORMAT = {4: FORMAT_I4, 8: FORMAT_I8_DOTS}


@dataclass(frozen=True)
class Integers:
    """A packed weight [outputs, inputs], or a stack of them.

    bits: 4 or 8. unit: inputs that share a scale, a multiple of 8; None: whole rows do, as they must beside int8
    activations. activations: see `ops.weight.Layout`; int8 ones take 8 bits. input_scale, input_offset: float32 [1], of
    a stack [E, 1]; quant_bias: int32, added to the integer sums; all for "static".
    """

    data: Tensor
    outputs: int
    inputs: int
    bits: int
    scale: Tensor
    offset: Tensor | None = None
    unit: int | None = None
    activations: Activations = "float"
    input_scale: Tensor | None = None
    input_offset: Tensor | None = None
    quant_bias: Tensor | None = None

    def struct(self) -> PanelWeight:
        """As the C side takes it; the tensors may be on meta."""
        beside = self.offset, self.input_scale, self.input_offset, self.quant_bias
        return PanelWeight(
            self.data.data_ptr(),
            self.scale.data_ptr(),
            self.outputs,
            self.inputs,
            _FORMAT[self.bits],
            self.unit or UNIT * -(-self.inputs // UNIT),
            ACTIVATIONS[self.activations],
            *(None if tensor is None else tensor.data_ptr() for tensor in beside),
        )

    def check(self, name: str, stack: tuple[int, ...] = (), gate_up_panels: bool = False) -> None:
        """Raises ValueError for tensors that do not go together.

        stack: (E,) of a stack. gate_up_panels: whether panels of the first and the second half of the outputs lie in
        turns.
        """
        parts = 2 if gate_up_panels else 1
        panels, *of_panel = packed_shape(self.bits, self.outputs // parts, self.inputs)
        panels *= parts
        units = () if self.unit is None else (-(-self.inputs // self.unit),)
        expected = {
            "data": ((*stack, panels, *of_panel), torch.int8),
            "scale": ((*stack, panels, *units, PANEL), torch.float32),
            "offset": ((*stack, panels, *units, PANEL), torch.float32),
            "input_scale": ((*stack, 1), torch.float32),
            "input_offset": ((*stack, 1), torch.float32),
            "quant_bias": ((*stack, panels, PANEL), torch.int32),
        }
        for field, (shape, dtype) in expected.items():
            tensor = getattr(self, field)
            if tensor is None:
                continue
            on_cpu(name, tensor)
            dense(name, tensor, tensor.dim())
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"{name}: {field} {tuple(tensor.shape)} of {tensor.dtype}, not {shape} of {dtype}, beside a weight"
                    f" of {self.bits} bits [{self.outputs}, {self.inputs}] in units of {self.unit}"
                )
        by_floats = self.activations == "float"
        if (self.bits == 4 and not by_floats) or (self.unit is not None and (not by_floats or self.unit % UNIT)):
            raise ValueError(f"{name}: {self.bits} bits in units of {self.unit} beside {self.activations} activations")
        static = {tensor is not None for tensor in (self.input_scale, self.input_offset)}
        if static != {self.activations == "static"} or (self.quant_bias is not None and static != {True}):
            raise ValueError(
                f"{name}: {self.activations} activations with an input scale, an offset or a bias of integers"
            )


def packed_shape(bits: int, outputs: int, inputs: int) -> tuple[int, int, int]:
    """[panels, inputs, bytes] of a weight [outputs, inputs]."""
    fill = _FILL[bits]
    return -(-outputs // PANEL), -(-inputs // fill) * fill, PANEL * bits // 8


def pack_into(library: Library, weight_OI: Tensor, packed: Tensor, bits: int, step: int = 1) -> None:
    """Write the panels of int8 values, of 4 bits -8 to 7, to every `step`-th panel of `packed`."""
    outputs, inputs = weight_OI.shape
    on_cpu("pack", weight_OI, packed)
    dense("pack", weight_OI)
    dense("pack", packed, 3)
    places = packed[::step]
    if {weight_OI.dtype, packed.dtype} != {torch.int8} or tuple(places.shape) != packed_shape(bits, outputs, inputs):
        raise ValueError(
            f"pack: {tuple(weight_OI.shape)} of {weight_OI.dtype} does not go to every {step}th of the panels"
            f" {tuple(packed.shape)} of {packed.dtype} with {bits} bits"
        )
    call = PackCall(
        weight_OI.data_ptr(), packed.data_ptr(), weight_OI.stride(0), outputs, inputs, step, _FORMAT[bits], threads()
    )
    refuse(library.pack(byref(call)), "pack")


def put_in_panels(values: Tensor, panels: Tensor) -> None:
    """Write scales, offsets or biases [O, ...] to `panels` [panels, ..., 16], the last one being filled up with 0."""
    whole = len(values) // PANEL
    panels[:whole].copy_(values[: whole * PANEL].unflatten(0, (whole, PANEL)).movedim(1, -1))
    if rest := len(values) - whole * PANEL:
        panels[whole].zero_()
        panels[whole, ..., :rest].copy_(values[whole * PANEL :].movedim(0, -1))
