"""Operations between the ranks of a tensor-parallel group. Layers call them only where there is more than one rank."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from atb_models.ops.cost import Cost, nbytes
from atb_models.ops.table import op


class Collective(Protocol):
    """What the operations need of a group of ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, x: Tensor) -> Tensor: ...

    def all_gather(self, x: Tensor) -> Tensor: ...


def _all_reduce_cost(out: Tensor, x: Tensor, group: Collective) -> Cost:
    """Ring: each rank sums its n-th part and sends n - 1 parts twice (Patarasuk and Yuan 2009)."""
    share = (group.size - 1) / group.size
    return Cost(share * x.numel(), nbytes(x), nbytes(out), 2 * share * nbytes(x))


@op("AllReduce", cost=_all_reduce_cost)
def all_reduce(x: Tensor, group: Collective) -> Tensor:
    """Sum over the ranks, the same bits on every rank; may reuse x."""
    return group.all_reduce(x)


def _all_gather_cost(out: Tensor, x: Tensor, group: Collective) -> Cost:
    """Ring: each rank passes on every part but the last that it gets."""
    return Cost(0, nbytes(x), nbytes(out), (group.size - 1) * nbytes(x))


@op("AllGather", cost=_all_gather_cost)
def all_gather(x: Tensor, group: Collective) -> Tensor:
    """The ranks' tensors side by side on the last dimension, in rank order."""
    return group.all_gather(x)
