"""Operations between the ranks of a tensor-parallel group. Layers call them only where there is more than one rank."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from atb_models.ops.table import op


class Collective(Protocol):
    """What the operations need of a group of ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> Tensor: ...

    def all_gather(self, x: Tensor) -> Tensor: ...


@op("AllReduce")
def all_reduce(x: Tensor, group: Collective) -> Tensor:
    """Sum over the ranks, the same bits on every rank; may reuse x."""
    return group.all_reduce(x)


@op("AllGather")
def all_gather(x: Tensor, group: Collective) -> Tensor:
    """The ranks' tensors side by side on the last dimension, in rank order."""
    return group.all_gather(x)
