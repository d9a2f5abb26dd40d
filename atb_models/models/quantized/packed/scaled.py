"""A weight [O, I] that lies in a tensor number by number, or packed along its inputs, with scales beside it."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from atb_models.models.quantized.packed.bits import per_word, unpack
from atb_models.models.quantized.packed.checks import (
    WORDS,
    check_dtype,
    check_order,
    check_shape,
    matrix_shape,
    read_block,
    wrong,
)
from atb_models.models.quantized.packed.grid import Grid, PackedGrid, grid_size
from atb_models.models.quantized.packed.weight import StaticInput, blocks
from atb_models.models.weights.checkpoint import Checkpoint


class Numbers(Protocol):
    """The numbers of a weight, whatever their scales. name: of the tensor. shape: (O, I)."""

    name: str
    shape: tuple[int, int]

    def read(self, rows: range, columns: range) -> Tensor:
        """int8, or an 8-bit float, [rows, columns]."""


class PlainNumbers:
    """One by one, in a tensor of that type. bits: 4 where each int8 holds an integer of -8 to 7.

    Raises CheckpointError for another type or shape, and, when read, for integers that 4 bits do not hold.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, dtype: torch.dtype, bits: Literal[4, 8]) -> None:
        check_dtype(checkpoint, name, (dtype,))
        self.name, self.shape, self._checkpoint, self._bits = name, matrix_shape(checkpoint, name), checkpoint, bits

    def read(self, rows: range, columns: range) -> Tensor:
        found = read_block(self._checkpoint, self.name, rows, columns)
        if self._bits == 4 and found.numel():
            low, high = int(found.min()), int(found.max())
            if not -8 <= low <= high <= 7:
                raise wrong(self._checkpoint, self.name, f"has numbers from {low} to {high}, but 4 bits are -8 to 7")
        return found


class PackedNumbers:
    """Integers in the words of int32 [O, ceil(I * bits / 32)], less half their range."""

    def __init__(self, checkpoint: Checkpoint, name: str, shape: tuple[int, int], bits: int) -> None:
        check_dtype(checkpoint, name, WORDS)
        check_shape(checkpoint, name, (shape[0], -(-shape[1] // per_word(bits))), f"a weight of {bits} bits in {shape}")
        self.name, self.shape, self._checkpoint, self._bits = name, shape, checkpoint, bits

    def read(self, rows: range, columns: range) -> Tensor:
        words = blocks(columns, per_word(self._bits))
        found = unpack(read_block(self._checkpoint, self.name, rows, words), self._bits)
        first = columns.start - words.start * per_word(self._bits)
        return found[:, first : first + len(columns)]


class ScaledWeight:
    """Numbers and scales. zeros: what is subtracted from the numbers; where not `subtracts`, they must all be 0.
    order: the tensor with the group of each input, where groups are no runs of inputs. inputs: the tensors with the
    scale and the zero point of static inputs, the latter perhaps ""."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        numbers: Numbers,
        scales: Grid,
        block: tuple[int, int],
        *,
        zeros: Grid | PackedGrid | None = None,
        subtracts: bool = False,
        order: str | None = None,
        inputs: tuple[str, str] | None = None,
    ) -> None:
        self._checkpoint, self._numbers, self._scales, self._zeros = checkpoint, numbers, scales, zeros
        self._order, self._inputs = order, inputs
        self.shape, self.block, self.has_offsets = numbers.shape, block, subtracts

    def where(self) -> str:
        return self._checkpoint.where(self._numbers.name)

    def values(self, rows: range, columns: range) -> Tensor:
        return self._numbers.read(rows, columns)

    def scales(self, rows: range, columns: range) -> Tensor:
        if self._zeros is not None and not self.has_offsets and self._zeros.read(rows, columns).count_nonzero():
            raise wrong(self._checkpoint, self._zeros.name, "is not 0 everywhere, although symmetric is declared true")
        return self._scales.read(rows, columns)

    def offsets(self, rows: range, columns: range) -> Tensor:
        assert self._zeros is not None
        return self._zeros.read(rows, columns)

    def order(self) -> Tensor | None:
        if self._order is None:
            return None
        order, groups = self._checkpoint.read(self._order).long(), grid_size(self.shape, self.block)[1]
        check_order(self._checkpoint, self._order, order, groups)
        return order

    def static_input(self) -> StaticInput | None:
        if self._inputs is None:
            return None
        scale, zero = self._inputs
        found = self._checkpoint.read(scale).float().view(1)
        if not 0 < float(found) < float("inf"):
            raise wrong(self._checkpoint, scale, f"is {float(found)}, but must be above 0")
        return StaticInput(found, self._checkpoint.read(zero).float().view(1) if zero else torch.zeros(1))
