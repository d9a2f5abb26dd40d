"""How the library stores the weights of linear maps, for the loader (see `ops.weight`)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from atb_models.ops.native.experts import packed_gate_up_shape
from atb_models.ops.native.library import Library
from atb_models.ops.native.linear import pack_into, packed_shape
from atb_models.ops.weight import Layout, Weight


class Panels:
    """Of Linear, and of the experts' down product: see `native.linear`."""

    name = "panels of 16 outputs"

    def __init__(self, library: Library) -> None:
        self._library = library

    def layout(self, plain: Layout) -> Layout:
        *stack, outputs, inputs = plain.shape
        return replace(plain, stored=(*stack, *packed_shape(outputs, inputs)), packing=self)

    def pack(self, matrix_OI: Tensor, weight: Weight, unit: int | None) -> None:
        pack_into(self._library, matrix_OI, weight.data if unit is None else weight.data[unit])


class GateUpPanels:
    """Of the experts' gate and up products, whose matrices [2 F, H] hold the gate above up."""

    name = "panels of 16 outputs, gate and up in turns"

    def __init__(self, library: Library) -> None:
        self._library = library

    def layout(self, plain: Layout) -> Layout:
        experts, both, hidden = plain.shape
        return replace(plain, stored=packed_gate_up_shape(experts, both // 2, hidden), packing=self)

    def pack(self, matrix_OI: Tensor, weight: Weight, unit: int | None) -> None:
        assert unit is not None, "experts are a stack"
        for part, half in enumerate(matrix_OI.chunk(2)):
            pack_into(self._library, half, weight.data[unit, part:], step=2)
