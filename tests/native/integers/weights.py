"""Weights of integers for the tests: random ones, packed, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atb_models.ops.native.integers import Integers, pack_into, packed_shape, put_in_panels
from atb_models.ops.native.library import Library


@dataclass(frozen=True)
class Plain:
    """w = (q - offset) * scale: q int8 [..., O, I], scale and offset float32 [..., O, units]; `unit` inputs each."""

    q: Tensor
    scale: Tensor
    offset: Tensor | None
    unit: int

    def exact(self) -> Tensor:
        """In float64."""
        inputs = self.q.shape[-1]
        scale, offset = (
            None if x is None else x.double().repeat_interleave(self.unit, -1)[..., :inputs]
            for x in (self.scale, self.offset)
        )
        q = self.q.double()
        assert scale is not None
        return (q if offset is None else q - offset) * scale

    def __getitem__(self, which: int | slice) -> Plain:
        """Of a stack one, or of a matrix some rows."""
        return replace(
            self, q=self.q[which], scale=self.scale[which], offset=None if self.offset is None else self.offset[which]
        )


def random_integers(shape: tuple[int, ...], bits: int, unit: int | None, offset: bool, size: float = 0.05) -> Plain:
    """A weight whose values are about `size`."""
    *outputs, inputs = shape
    top = 2 ** (bits - 1)
    unit = unit or inputs
    units = -(-inputs // unit)
    q = torch.randint(-top, top, shape, dtype=torch.int8)
    scale = (torch.rand(*outputs, units) + 0.5) * size * 2 / top
    offsets = torch.randint(-top // 2, top // 2, (*outputs, units)).float() if offset else None
    return Plain(q, scale, offsets, unit)


def packed(library: Library, plain: Plain, bits: int, unit: int | None, activations: str = "float") -> Integers:
    """A matrix [O, I], or a stack of them, as Linear and the down product take it."""
    return _packed(library, plain, bits, unit, activations, parts=1)


def packed_gate_up(library: Library, plain: Plain, bits: int, unit: int | None, activations: str = "float") -> Integers:
    """Experts [E, 2 F, H]: a panel of the gate, then one of up, in turns."""
    return _packed(library, plain, bits, unit, activations, parts=2)


def _packed(library: Library, plain: Plain, bits: int, unit: int | None, activations: str, parts: int) -> Integers:
    *stack, outputs, inputs = plain.q.shape
    panels, filled, width = packed_shape(bits, outputs // parts, inputs)
    units = plain.scale.shape[-1:] if unit else ()
    data = torch.full((*stack, parts * panels, filled, width), 0x55, dtype=torch.int8)
    scale = torch.full((*stack, parts * panels, *units, 16), float("nan"))
    offset = None if plain.offset is None else scale.clone()
    for e in range(stack[0] if stack else 1):
        for part in range(parts):
            rows = slice(part * outputs // parts, (part + 1) * outputs // parts)
            matrix = (plain[e] if stack else plain)[rows]
            at = e if stack else ...
            pack_into(library, matrix.q, data[at][part:], bits, parts)
            for values, place in ((matrix.scale, scale), (matrix.offset, offset)):
                if values is not None and place is not None:
                    put_in_panels(values if unit else values[:, 0], place[at][part::parts])
    return Integers(data, outputs, inputs, bits, scale, offset, unit, activations)  # type: ignore[arg-type]
