"""What a call of an operation must do at least: arithmetic, memory traffic, traffic between ranks.

FLOPs: each addition, multiplication, division and elementary function of the definition counts one, so a product of
[T, I] and [I, O] has 2 T I O. Comparisons, copies, index arithmetic, what is done once a row (the root of a norm) and
the softmax inside attention (1 / D of its products) count nothing. Bytes: every operand that is needed is read once,
every result is written once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Of one call on one rank. `sent`: bytes that the rank sends to others, in the best (ring) schedule."""

    flops: float = 0
    read: float = 0
    written: float = 0
    sent: float = 0

    @property
    def moved(self) -> float:
        """Bytes of memory traffic."""
        return self.read + self.written

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.read + other.read, self.written + other.written, self.sent + other.sent
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.read * times, self.written * times, self.sent * times)


def cost(flops: float, reads: Iterable[Tensor | None], writes: Iterable[Tensor]) -> Cost:
    """The cost of a call that reads and writes these tensors whole."""
    return Cost(flops, nbytes(*reads), nbytes(*writes))


def nbytes(*tensors: Tensor | None) -> int:
    """Bytes of the elements of these tensors; a view counts what it shows."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
