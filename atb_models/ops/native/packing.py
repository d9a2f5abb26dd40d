"""How the library stores the weights of linear maps, for the loader (see `ops.weight`)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from atb_models.ops.native.experts import packed_gate_up_shape
from atb_models.ops.native.library import Library
from atb_models.ops.native.linear import PANEL, pack_into, packed_shape
from atb_models.ops.weight import WHOLE, Layout, Weight


def takes(plain: Layout) -> bool:
    """The storages that the library has products for, with activations of floats; torch has those of all others."""
    if not plain.quantized:
        return True
    return plain.bits == 8 and plain.unit is None and not plain.offsets and plain.activations == "float"


class Panels:
    """Of Linear, and of the experts' down product: see `native.linear`."""

    name = "panels of 16 outputs"
    rows = PANEL

    def __init__(self, library: Library) -> None:
        self._library = library

    def takes(self, plain: Layout) -> bool:
        return takes(plain)

    def layout(self, plain: Layout) -> Layout:
        *stack, outputs, inputs = plain.shape
        return replace(plain, stored=(*stack, *packed_shape(outputs, inputs)), packing=self)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        panels = weight.data if unit is None else weight.data[unit]
        pack_into(self._library, band_OI, panels[first // PANEL :][: -(-len(band_OI) // PANEL)])


class GateUpPanels:
    """Of the experts' gate and up products, whose matrices [2 F, H] hold the gate above up."""

    name = "panels of 16 outputs, gate and up in turns"
    rows = WHOLE  # the halves of a matrix lie in turns

    def __init__(self, library: Library) -> None:
        self._library = library

    def takes(self, plain: Layout) -> bool:
        return takes(plain)

    def layout(self, plain: Layout) -> Layout:
        experts, both, hidden = plain.shape
        return replace(plain, stored=packed_gate_up_shape(experts, both // 2, hidden), packing=self)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        assert unit is not None and not first, "experts are a stack, packed one by one"
        for part, half in enumerate(band_OI.chunk(2)):
            pack_into(self._library, half, weight.data[unit, part:], step=2)
