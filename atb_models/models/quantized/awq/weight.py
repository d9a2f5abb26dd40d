"""One linear map as AutoAWQ's version "gemm" packs it: along the outputs, in matrices that are torch's transposed.

For a weight [O, I]: qweight int32 [I, O / 8], scales [groups, O], qzeros int32 [groups, O / 8]. The eight 4-bit
integers of a word, from its lowest bits on, are those of the columns 0, 2, 4, 6, 1, 3, 5, 7 of its run. They and the
zero points are unsigned, weight = (integer - zero point) * scale. Source: AutoAWQ 0.2.9.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from torch import Tensor

from atb_models.models.quantized.packed.bits import per_word, unpack
from atb_models.models.quantized.packed.checks import (
    FLOATS,
    WORDS,
    check_dtype,
    check_shape,
    check_there,
    matrix_shape,
    read_block,
    wrong,
)
from atb_models.models.quantized.packed.weight import StaticInput, blocks
from atb_models.models.weights.checkpoint import Checkpoint

BITS: Final = 4


class AwqWeight:
    """present: the names of the checkpoint. group: inputs that share a scale; None: all of them. symmetric: no zero
    points are stored, or all are 8.

    Raises CheckpointError for a tensor that is missing or does not fit.
    """

    def __init__(
        self, checkpoint: Checkpoint, present: Collection[str], module: str, group: int | None, *, symmetric: bool
    ) -> None:
        self._checkpoint, self._module, self._symmetric = checkpoint, module, symmetric
        self._has_zeros = self._name("qzeros") in present
        others = ("scales",) if symmetric and not self._has_zeros else ("scales", "qzeros")
        there = next(name for part in ("qweight", *others) if (name := self._name(part)) in present)
        for part in ("qweight", *others):
            check_there(checkpoint, present, self._name(part), there)
        columns, words = matrix_shape(checkpoint, self._name("qweight"))
        rows = words * per_word(BITS)
        self.shape = rows, columns
        self.block = 1, group or columns
        self.has_offsets = not symmetric
        groups = -(-columns // self.block[1])
        why = self._name("qweight") + (f" in groups of {group}" if group else "")
        check_dtype(checkpoint, self._name("qweight"), WORDS)
        check_dtype(checkpoint, self._name("scales"), FLOATS)
        check_shape(checkpoint, self._name("scales"), (groups, rows), why)
        if self._has_zeros:
            check_dtype(checkpoint, self._name("qzeros"), WORDS)
            check_shape(checkpoint, self._name("qzeros"), (groups, words), why)
        if self._name("bias") in present:
            check_shape(checkpoint, self._name("bias"), (rows,), why)

    def where(self) -> str:
        return self._checkpoint.where(self._name("qweight"))

    def values(self, rows: range, columns: range) -> Tensor:
        return self._integers("qweight", rows, columns)

    def scales(self, rows: range, columns: range) -> Tensor:
        if self._symmetric and self._has_zeros and self._integers("qzeros", rows, columns).count_nonzero():
            why = "is not 8 everywhere, although zero_point is declared false"
            raise wrong(self._checkpoint, self._name("qzeros"), why)
        return read_block(self._checkpoint, self._name("scales"), columns, rows).t().float()

    def offsets(self, rows: range, columns: range) -> Tensor:
        return self._integers("qzeros", rows, columns).float()

    def order(self) -> Tensor | None:
        return None

    def static_input(self) -> StaticInput | None:
        return None

    def _name(self, part: str) -> str:
        return f"{self._module}.{part}"

    def _integers(self, part: str, rows: range, columns: range) -> Tensor:
        """Rows of the weight, and columns of it or of the grid, less 8 -> int8 [rows, columns]."""
        words = blocks(rows, per_word(BITS))
        found = unpack(read_block(self._checkpoint, self._name(part), columns, words), BITS, interleaved=True)
        first = rows.start - words.start * per_word(BITS)
        return found[:, first : first + len(rows)].t()
