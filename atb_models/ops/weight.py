"""The weights of linear maps: what they are, and how they lie in memory.

A backend may store the weights of an operation in an order or a data type of its own (`Packing`). The weight keeps its
shape for whoever prices, plans or shows it; the tensors that hold it are the backend's business alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from atb_models.ops.quantized.nibbles import pack_nibbles, packed_width, unpack_nibbles

Activations = Literal["float", "token", "static"]
# `Packed.rows` of what is packed only as a whole.
WHOLE = 1 << 62


class Packed(Protocol):
    """How a tensor is written that does not lie as it is read."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int:
        """Packed independently of the others: so many rows of a matrix, from a multiple of as many on."""

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        """Write plain rows of a matrix, from row `first` on, to their place. unit: its number in a stack, None where
        there is but one. A matrix is packed whole, or in bands that begin and end at multiples of `rows`."""


class Packing(Packed, Protocol):
    """How a backend stores the weights of an operation."""

    def takes(self, plain: Layout) -> bool:
        """Whether it stores weights that would lie like `plain`; those that it does not take go to the reference."""

    def layout(self, plain: Layout) -> Layout:
        """How a weight that would lie like `plain` is stored instead; runs on meta tensors' shapes, before loading.

        Integers that the backend has no product for become floats: a plain layout whose `instead` says why. Raises
        ConfigError where they cannot."""


@dataclass(frozen=True)
class Layout:
    """Of a weight [O, I], or of a stack of them [E, O, I]: its shape, and the tensors that hold it.

    dtype: of the stored values. stored: shape of the tensor that holds them. scales: shape of the float32 scales
    beside them, None without. loaded: data type in which the rows of a matrix are read. packing: None where the stored
    tensor is the weight itself, its rows one after the other. instead: why it is of floats, where integers were wanted.

    Of a weight of integers: bits of each. unit: inputs of this rank that share a scale, None: whole rows do. offsets:
    whether each scale has an offset, which is subtracted from its integers first. activations: what meets the weight,
    see `ops.quantized.linear`. meets: data type of the model's floats, None where no packing needs to know it.
    beside_as: how a tensor beside the weight, given by its name and its plain layout, is stored; None: as it is read.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: tuple[int, ...]
    loaded: torch.dtype
    scales: tuple[int, ...] | None = None
    packing: Packed | None = None
    bits: int = 8
    unit: int | None = None
    offsets: bool = False
    activations: Activations = "float"
    meets: torch.dtype | None = None
    beside_as: Callable[[str, Layout], Layout] | None = None
    instead: str = ""

    @classmethod
    def plain(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
        """Of a weight that is stored as it is."""
        return cls(shape, dtype, shape, dtype)

    @classmethod
    def integers(
        cls,
        shape: tuple[int, ...],
        *,
        bits: int = 8,
        unit: int | None = None,
        offsets: bool = False,
        activations: Activations = "float",
        meets: torch.dtype | None = None,
    ) -> Layout:
        """Of a weight of integers, one in each int8."""
        assert activations == "float" or (bits == 8 and unit is None), "int8 activations meet int8 rows with one scale"
        assert activations != "static" or not offsets, "with static activations weights are symmetric"
        scales = shape[:-1] if unit is None else (*shape[:-1], shape[-1] // unit)
        return cls(shape, torch.int8, shape, torch.int8, scales, None, bits, unit, offsets, activations, meets)

    @property
    def quantized(self) -> bool:
        """Whether its rows are read as integers with scales; else a packing that has scales makes them itself."""
        return not self.loaded.is_floating_point

    @property
    def kind(self) -> tuple[object, ...]:
        """What weights of one operation have in common that are stored alike."""
        return self.loaded, self.bits, self.unit is None, self.offsets, self.activations

    @property
    def is_plain(self) -> bool:
        """Whether torch can read it: it is not packed, or as nibbles."""
        return self.packing is None or self.packing is NIBBLES

    @property
    def beside(self) -> dict[str, Layout]:
        """The tensors beside the values, by their names in `Weight`."""
        found: dict[str, Layout] = {}
        if self.scales is not None:
            found["scale"] = Layout.plain(self.scales, torch.float32)
            if self.offsets:
                found["offset"] = found["scale"]
        if self.activations == "static":
            found["input_scale"] = found["input_offset"] = Layout.plain((*self.shape[:-2], 1), torch.float32)
            found["quant_bias"] = Layout.plain(self.shape[:-1], torch.int32)
        stored = self.beside_as
        return found if stored is None else {name: stored(name, plain) for name, plain in found.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, padding and all that lies beside it included."""
        own = math.prod(self.stored) * self.dtype.itemsize
        return own + sum(beside.nbytes for beside in self.beside.values())


@dataclass(frozen=True)
class Weight:
    """A weight of a linear map, as operations take it.

    scale, offset: float32 [O], or [O, I / unit]. For static activations: input_scale and input_offset, float32 [1], and
    quant_bias, int32 [O], which is added to the integer sums. Of a stack all have E in front. Where the layout has
    `beside_as` they are as the backend's products take them.
    """

    layout: Layout
    data: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None
    input_scale: Tensor | None = None
    input_offset: Tensor | None = None
    quant_bias: Tensor | None = None

    @classmethod
    def plain(cls, weight: Tensor) -> Weight:
        """A tensor [O, I] or [E, O, I] as it is."""
        return cls(Layout.plain(tuple(weight.shape), weight.dtype), weight)

    @property
    def rows(self) -> Tensor:
        """The tensor of a weight that is not packed."""
        assert self.layout.packing is None, f"a weight packed as {self.layout.packing.name} has no rows"
        return self.data

    @property
    def beside(self) -> dict[str, Tensor]:
        """The tensors beside its values, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor of its values and those beside it."""
        return (self.data, *self.beside.values())

    def matrix(self, unit: int) -> Weight:
        """One of a stack."""
        layout = self.layout
        scales = None if layout.scales is None else layout.scales[1:]
        layout = replace(layout, shape=layout.shape[1:], stored=layout.stored[1:], scales=scales)
        return Weight(layout, self.data[unit], **{name: tensor[unit] for name, tensor in self.beside.items()})

    def integers(self) -> Tensor:
        """The stored integers of a weight that torch can read, int8 in its own shape."""
        if self.layout.packing is NIBBLES:
            return unpack_nibbles(self.data, self.layout.shape[-1])
        return self.rows

    def dequantized(self, dtype: torch.dtype, unit: int | None = None) -> Tensor:
        """The rows of a weight that torch can read, or those of a matrix of a stack, as products of floats take them.

        Integers, less their offset, times their scale, all in float32, rounded to `dtype`; a float weight is as it is.
        """
        if unit is not None:
            return self.matrix(unit).dequantized(dtype)
        if self.scale is None:
            return self.rows
        grouped = self.integers() if self.layout.unit is None else self.integers().unflatten(-1, (-1, self.layout.unit))
        if self.offset is not None:
            grouped = grouped - self.offset.unsqueeze(-1)
        rows = (grouped * self.scale.unsqueeze(-1)).to(dtype)
        return rows if self.layout.unit is None else rows.flatten(-2)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def nbytes(self) -> int:
        return self.layout.nbytes


class Nibbles:
    """The packing of 4-bit weights where a backend has none of its own: see `ops.quantized.nibbles`."""

    name = "nibbles"
    rows = 1

    def takes(self, plain: Layout) -> bool:
        return plain.quantized and plain.bits == 4

    def layout(self, plain: Layout) -> Layout:
        stored = (*plain.shape[:-1], packed_width(plain.shape[-1]))
        return replace(plain, dtype=torch.uint8, stored=stored, packing=self)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        matrix = weight.data if unit is None else weight.data[unit]
        pack_nibbles(band_OI, matrix[first : first + len(band_OI)])


NIBBLES = Nibbles()


def tensors_of(operands: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors among the operands of a call by name; for a weight the one that holds its values."""
    found = {name: value.data if isinstance(value, Weight) else value for name, value in operands.items()}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
