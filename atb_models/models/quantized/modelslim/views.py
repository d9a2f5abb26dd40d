"""A tensor of the internal form, read from one that ModelSlim stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.models.quantized.modelslim.linears import Packing
from atb_models.models.weights.checkpoint import Checkpoint
from atb_models.models.weights.finite import count_not_finite
from atb_models.models.weights.slices import slice_shape
from atb_models.wording import named

_BIT_46 = 1 << 14  # of the high word: a mark of the operator that takes these scales


@dataclass(frozen=True)
class View:
    """The tensor `name`, presented in `shape`: that of the file, without a last dimension of 1, or with a first one."""

    checkpoint: Checkpoint
    name: str
    shape: tuple[int, ...]

    def read_into(self, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """Fill `target` with [start, stop) along `dim`; dim None: all. Returns how many numbers are not finite."""
        stored = self.checkpoint.shape(self.name)
        if not stored:
            return self.checkpoint.read_into(self.name, None, 0, 0, target.squeeze(0)) if target.numel() else 0
        same = len(stored) == len(self.shape)
        return self.checkpoint.read_into(self.name, dim, start, stop, target if same else target.unsqueeze(-1))

    def read(self, dim: int | None, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """The slice as a new CPU tensor, as it is stored."""
        part = torch.empty(slice_shape(self.shape, dim, start, stop), dtype=dtype)
        View.read_into(self, dim, start, stop, part)
        return part

    def fail(self, what: str) -> CheckpointError:
        """The error for numbers that cannot be."""
        return CheckpointError(f"{self.checkpoint.where(self.name)}: tensor {named([self.name])} {what}")


class Positive(View):
    """The scale of static activations, by which they are divided."""

    def read_into(self, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        numbers = super().read_into(dim, start, stop, target)
        if not bool((target > 0).all()):
            raise self.fail(f"is {target.tolist()}, but must be above 0")
        return numbers


class FloatBits(View):
    """float32 numbers, the bits of each in the low word of an int64."""

    def read_into(self, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        low, high = self.read(dim, start, stop, torch.int64).view(torch.int32).view(-1, 2).unbind(-1)
        if bool((high & ~_BIT_46).any()):
            raise self.fail("holds integers that are not the bits of float32 numbers, which have a high word of 0")
        floats = low.contiguous().view(torch.float32).view(target.shape)
        target.copy_(floats)
        return count_not_finite(floats)


class FourBits(View):
    """Integers of -8 to 7, one in each int8."""

    def read_into(self, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        part = self.read(dim, start, stop, torch.int8)
        if part.numel() and not -8 <= int(part.min()) <= int(part.max()) <= 7:
            raise self.fail(f"has numbers from {int(part.min())} to {int(part.max())}, but 4 bits are -8 to 7")
        target.copy_(part)
        return 0


@dataclass(frozen=True)
class Pairs(View):
    """Integers of -8 to 7, two neighbouring outputs or inputs in each int8, the even one in the low four bits."""

    packing: Packing

    def read_into(self, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        along = 0 if self.packing == "outputs" else 1
        stored = View(self.checkpoint, self.name, self.checkpoint.shape(self.name))
        if dim != along:
            return self._unpack(stored.read(dim, start, stop, torch.int8), along, 0, target)
        first = start // 2
        pairs = stored.read(dim, first, max(first, -(-stop // 2)), torch.int8)
        return self._unpack(pairs, along, start - 2 * first, target)

    @staticmethod
    def _unpack(pairs: Tensor, along: int, skipped: int, target: Tensor) -> int:
        low, high = (pairs << 4) >> 4, pairs >> 4  # of int8: both shifts to the right keep the sign
        both = torch.stack((low, high), dim=along + 1).flatten(along, along + 1)
        target.copy_(both.narrow(along, skipped, target.shape[along]))
        return 0


class Zeros(View):
    """Offsets of a weight that has none; `name`: the scales, whose shape is theirs."""

    def read_into(self, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        target.zero_()
        return 0
