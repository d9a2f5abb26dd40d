"""Norms of queries and keys, between their projection and the rotation."""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.layers.norm import RmsNorm
from atb_models.layers.parameter import cut, hold
from atb_models.layers.share import Share


class HeadNorms(nn.Module):
    """RmsNorm of each head on its own; one weight [D] for all queries and one for all keys, whole on every rank."""

    def __init__(self, build: Build, head_dim: int, eps: float) -> None:
        super().__init__()
        self.q = RmsNorm(build.within("q"), head_dim, eps)
        self.k = RmsNorm(build.within("k"), head_dim, eps)

    def forward(self, q_TND: Tensor, k_TMD: Tensor) -> tuple[Tensor, Tensor]:
        return self.q(q_TND), self.k(k_TMD)


class WideNorms(nn.Module):
    """RmsNorm of a token's queries over all heads, and of its keys; the weights are cut by heads as these are.

    Each rank adds the squares of its heads to the sums of all. queries, keys: the rank's shares of the values of all
    heads. counts_keys: False where a rank before this one holds the same KV heads.
    """

    def __init__(self, build: Build, queries: Share, keys: Share, eps: float, *, counts_keys: bool) -> None:
        super().__init__()
        self.ranks, self.eps, self.counts_keys = build.tensor, eps, counts_keys
        self.q = _WeightShare(build, queries)
        self.k = _WeightShare(build, keys)

    def forward(self, q_TND: Tensor, k_TMD: Tensor) -> tuple[Tensor, Tensor]:
        sums_T2 = ops.square_sums(q_TND, k_TMD if self.counts_keys else None)
        if self.ranks.size > 1:
            sums_T2 = ops.all_reduce(sums_T2, self.ranks.collective())
        q, k = self.q, self.k
        return (
            ops.norm_by_sums(q_TND, sums_T2, 0, q.width, q.weight, self.eps),
            ops.norm_by_sums(k_TMD, sums_T2, 1, k.width, k.weight, self.eps),
        )


class _WeightShare(nn.Module):
    """This rank's part of a weight over all heads. width: of the whole."""

    weight: nn.Parameter

    def __init__(self, build: Build, share: Share) -> None:
        super().__init__()
        self.width = share.total
        weight = build.parameter(share.width, padded=share.padded)
        hold(self, "weight", weight, {"": cut((share.total,), 0, share.span)})
