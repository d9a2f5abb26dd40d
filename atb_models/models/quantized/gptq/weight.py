"""One linear map as GPTQ packs it: integers along the inputs, in matrices that are torch's transposed.

For a weight [O, I]: qweight int32 [I * bits / 32, O], scales [groups, O], qzeros int32 [groups, O * bits / 32], and
perhaps g_idx int32 [I], the group of each input, and bias [O]. Within a word the first integer has the lowest bits.
Integers and zero points are unsigned, weight = (integer - zero point) * scale. Sources: AutoGPTQ 0.7.1 and
GPTQModel 2.0, whose first format stores zero points less one and whose second one ("gptq_v2") stores them as they are.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from atb_models.models.quantized.gptq.settings import GptqForm
from atb_models.models.quantized.packed.bits import per_word, unpack
from atb_models.models.quantized.packed.checks import (
    FLOATS,
    WORDS,
    check_dtype,
    check_order,
    check_shape,
    check_there,
    matrix_shape,
    read_block,
    wrong,
)
from atb_models.models.quantized.packed.modules import is_plain
from atb_models.models.quantized.packed.weight import StaticInput, blocks
from atb_models.models.weights.checkpoint import Checkpoint


class GptqWeight:
    """`present`: the names of the checkpoint. scattered: groups are those of g_idx, and no runs of inputs.

    Raises CheckpointError for a tensor that is missing or does not fit.
    """

    def __init__(
        self, checkpoint: Checkpoint, present: Collection[str], module: str, form: GptqForm, *, scattered: bool
    ) -> None:
        self._checkpoint, self._module, self._form, self._scattered = checkpoint, module, form, scattered
        for part in ("qweight", "scales", "qzeros"):
            check_there(checkpoint, present, self._name(part), self._first(present))
        words, rows = matrix_shape(checkpoint, self._name("qweight"))
        columns = words * per_word(form.bits)
        self.shape = rows, columns
        self.block = 1, form.group or columns
        groups = -(-columns // self.block[1])
        why = f"{self._name('qweight')} with {form.bits} bits" + (f" in groups of {form.group}" if form.group else "")
        for part, dtypes, shape in (
            ("qweight", WORDS, (words, rows)),
            ("scales", FLOATS, (groups, rows)),
            ("qzeros", WORDS, (groups, rows // per_word(form.bits))),
        ):
            check_dtype(checkpoint, self._name(part), dtypes)
            check_shape(checkpoint, self._name(part), shape, why)
        self._has_order = self._name("g_idx") in present
        if self._has_order:
            check_dtype(checkpoint, self._name("g_idx"), WORDS)
            check_shape(checkpoint, self._name("g_idx"), (columns,), why)
        elif form.ordered and form.group is not None:
            check_there(checkpoint, present, self._name("g_idx"), self._name("qweight"))
        if self._name("bias") in present:
            check_shape(checkpoint, self._name("bias"), (rows,), why)

    @property
    def has_offsets(self) -> bool:
        return not self._form.symmetric

    def where(self) -> str:
        return self._checkpoint.where(self._name("qweight"))

    def values(self, rows: range, columns: range) -> Tensor:
        if self._has_order and not self._scattered:
            self._check_order()
        many = per_word(self._form.bits)
        words = blocks(columns, many)
        found = unpack(read_block(self._checkpoint, self._name("qweight"), words, rows).t(), self._form.bits)
        return found[:, columns.start - words.start * many :][:, : len(columns)]

    def scales(self, rows: range, columns: range) -> Tensor:
        if self._form.symmetric and self._zeros(rows, columns).count_nonzero():
            middle = (1 << (self._form.bits - 1)) - self._form.minus_one
            raise wrong(
                self._checkpoint,
                self._name("qzeros"),
                f"is not {middle} everywhere, although the checkpoint is declared symmetric: sym or checkpoint_format"
                " is not that of this file",
            )
        return read_block(self._checkpoint, self._name("scales"), columns, rows).t().float()

    def offsets(self, rows: range, columns: range) -> Tensor:
        return self._zeros(rows, columns).float()

    def order(self) -> Tensor | None:
        if not self._scattered:
            return None
        order = self._checkpoint.read(self._name("g_idx")).long()
        check_order(self._checkpoint, self._name("g_idx"), order, self._checkpoint.shape(self._name("scales"))[0])
        return order

    def static_input(self) -> StaticInput | None:
        return None

    def _name(self, part: str) -> str:
        return f"{self._module}.{part}"

    def _first(self, present: Collection[str]) -> str:
        """A part that is there, which tells where the others should be."""
        return next(name for part in ("qweight", "scales", "qzeros", "g_idx") if (name := self._name(part)) in present)

    def _zeros(self, rows: range, columns: range) -> Tensor:
        """Zero points less the middle of the range -> int8 [rows, columns of the grid].

        One that was stored less one wraps around: 0 is stored as the largest number.
        """
        bits, many = self._form.bits, per_word(self._form.bits)
        words = blocks(rows, many)
        found = unpack(read_block(self._checkpoint, self._name("qzeros"), columns, words), bits)
        found = found[:, rows.start - words.start * many :][:, : len(rows)].t()
        if not self._form.minus_one:
            return found
        middle = 1 << (bits - 1)
        return ((found.short() + 1 + middle) % (1 << bits) - middle).to(torch.int8)

    def _check_order(self) -> None:
        if not is_plain(self._checkpoint.read(self._name("g_idx")), self.block[1]):
            raise wrong(
                self._checkpoint,
                self._name("g_idx"),
                "puts inputs into groups out of order, although desc_act is declared false",
            )
