"""How the library stores the weights of linear maps, for the loader (see `ops.weight`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from atb_models.ops.native import integers
from atb_models.ops.native.experts import packed_gate_up_shape
from atb_models.ops.native.integers import Integers
from atb_models.ops.native.library import Library
from atb_models.ops.native.linear import PANEL, pack_into, packed_shape
from atb_models.ops.weight import WHOLE, Layout, Weight


def by_integers(plain: Layout) -> bool:
    """Whether a weight meets products of integers (see `native.integers`). int8 without offsets, with a scale for each
    output and beside floats, are computed as floats."""
    as_floats = plain.bits == 8 and plain.unit is None and not plain.offsets and plain.activations == "float"
    return plain.quantized and not as_floats


def takes(plain: Layout) -> bool:
    """The storages that the library has products for; torch has those of units that are no multiple of 8."""
    return plain.unit is None or plain.unit % integers.UNIT == 0


class Panels:
    """Of Linear, and of the experts' down product: see `native.linear`."""

    name = "panels of 16 outputs"
    rows = PANEL

    def __init__(self, library: Library) -> None:
        self._library, self._integers = library, IntegerPanels(library, parts=1)

    def takes(self, plain: Layout) -> bool:
        return takes(plain)

    def layout(self, plain: Layout) -> Layout:
        if by_integers(plain):
            return self._integers.layout(plain)
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
        self._library, self._integers = library, IntegerPanels(library, parts=2)

    def takes(self, plain: Layout) -> bool:
        return takes(plain)

    def layout(self, plain: Layout) -> Layout:
        if by_integers(plain):
            return self._integers.layout(plain)
        experts, both, hidden = plain.shape
        return replace(plain, stored=packed_gate_up_shape(experts, both // 2, hidden), packing=self)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        assert unit is not None and not first, "experts are a stack, packed one by one"
        for part, half in enumerate(band_OI.chunk(2)):
            pack_into(self._library, half, weight.data[unit, part:], step=2)


class IntegerPanels:
    """Of weights that meet products of integers.

    parts: into how many a matrix's outputs are divided whose panels lie in turns.
    """

    name = "panels of 16 outputs, for products of integers"

    def __init__(self, library: Library, parts: int) -> None:
        self._library, self._parts = library, parts
        self.rows = PANEL if parts == 1 else WHOLE

    def takes(self, plain: Layout) -> bool:
        return takes(plain) and by_integers(plain)

    def layout(self, plain: Layout) -> Layout:
        *stack, outputs, inputs = plain.shape
        panels, *of_panel = integers.packed_shape(plain.bits, outputs // self._parts, inputs)
        stored = (*stack, self._parts * panels, *of_panel)
        return replace(plain, stored=stored, packing=self, beside_as=VectorPanels(self._parts, len(stack)).beside)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        panels = weight.data if unit is None else weight.data[unit]
        bits = weight.layout.bits
        if self._parts == 1:
            panels = panels[first // PANEL :][: -(-len(band_OI) // PANEL)]
        for part, rows in enumerate(band_OI.chunk(self._parts)):
            integers.pack_into(self._library, rows, panels[part:], bits, self._parts)


@dataclass(frozen=True)
class VectorPanels:
    """Of what a weight has for each output, [O] or [O, units], behind `stack` dimensions."""

    parts: int
    stack: int
    name = "vectors of 16 outputs"
    rows = WHOLE

    def beside(self, name: str, plain: Layout) -> Layout:
        """How the tensor of that name beside a weight is stored: those of its inputs, which are no vectors, as read."""
        if name in ("input_scale", "input_offset"):
            return plain
        outputs, *units = plain.shape[self.stack :]
        panels = self.parts * -(-outputs // self.parts // PANEL)
        return replace(plain, stored=(*plain.shape[: self.stack], panels, *units, PANEL), packing=self)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        assert not first, "vectors are packed whole"
        panels = weight.data if unit is None else weight.data[unit]
        for part, rows in enumerate(band_OI.chunk(self.parts)):
            integers.put_in_panels(rows, panels[part :: self.parts])


def operand(weight: Weight) -> tuple[Tensor | Integers, Tensor | None]:
    """A packed weight as the library's operations take it: its values, and the scales that are not among them."""
    layout = weight.layout
    if not isinstance(layout.packing, IntegerPanels):
        return weight.data, weight.scale
    assert weight.scale is not None
    outputs, inputs = layout.shape[-2:]
    packed = Integers(
        weight.data,
        outputs,
        inputs,
        layout.bits,
        weight.scale,
        weight.offset,
        layout.unit,
        layout.activations,
        weight.input_scale,
        weight.input_offset,
        weight.quant_bias,
    )
    return packed, None
