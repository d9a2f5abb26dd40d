"""Numbers of a weight's blocks: scales, or what is subtracted before they are applied."""

from __future__ import annotations

import torch
from torch import Tensor

from atb_models.models.quantized.packed.bits import per_word, unpack
from atb_models.models.quantized.packed.checks import FLOATS, WORDS, check_dtype, check_shape, read_block, wrong
from atb_models.models.quantized.packed.weight import blocks
from atb_models.models.weights.checkpoint import Checkpoint
from atb_models.wording import shown


def grid_size(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Blocks along the outputs and the inputs of a weight; the last ones may be cut."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


class Grid:
    """A tensor with one number for each block.

    size: see grid_size. A single column may lack its dimension, and a single number both. Raises CheckpointError for
    another shape or type.
    """

    def __init__(
        self, checkpoint: Checkpoint, name: str, size: tuple[int, int], dtypes: tuple[torch.dtype, ...] = FLOATS
    ) -> None:
        check_dtype(checkpoint, name, dtypes)
        shape = checkpoint.shape(name)
        if shape not in (size, *([size[:1]] if size[1] == 1 else []), *([()] if size == (1, 1) else [])):
            raise wrong(checkpoint, name, f"has shape {shown(shape)}, but the weight and its blocks make it {size}")
        self.name, self._checkpoint, self._size, self._flat = name, checkpoint, size, len(shape) < 2

    def read(self, rows: range, columns: range) -> Tensor:
        """float32 [rows, columns]."""
        if not self._flat:
            return read_block(self._checkpoint, self.name, rows, columns).float()
        whole = self._checkpoint.read(self.name).float().view(self._size)
        return whole[rows.start : rows.stop, columns.start : columns.stop]


class PackedGrid:
    """The same, of integers packed along the outputs: int32 [ceil(size[0] * bits / 32), size[1]]."""

    def __init__(self, checkpoint: Checkpoint, name: str, size: tuple[int, int], bits: int) -> None:
        check_dtype(checkpoint, name, WORDS)
        check_shape(checkpoint, name, (-(-size[0] // per_word(bits)), size[1]), f"a weight of {bits} bits in {size}")
        self.name, self._checkpoint, self._bits = name, checkpoint, bits

    def read(self, rows: range, columns: range) -> Tensor:
        """float32 [rows, columns], less half the range of the integers."""
        words = blocks(rows, per_word(self._bits))
        found = unpack(read_block(self._checkpoint, self.name, words, columns).t(), self._bits)
        first = rows.start - words.start * per_word(self._bits)
        return found[:, first : first + len(rows)].t().float()
