"""How ranks share the heads of attention. Imports no torch: the launcher asks before it starts ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from atb_models.errors import ConfigError
from atb_models.layers.share import Share


@dataclass(frozen=True)
class HeadShares:
    """The query heads and KV heads of each of `size` ranks.

    A KV head's group is the queries that read it. With fewer ranks than KV heads every rank holds whole groups. Else
    it holds one KV head, of which other ranks have copies, and a part of its group. All ranks have the same shapes:
    where a rank has fewer heads than others, or none, zero heads follow its own.
    """

    total: int  # query heads of the model
    total_kv: int  # KV heads of the model, of which `total` is a multiple
    size: int
    step: int = 1  # where there are zero heads anyway, the query heads of a rank are a multiple of this if they can be

    @cached_property
    def group(self) -> int:
        """Query heads that read a KV head."""
        return self.total // self.total_kv

    @cached_property
    def kv_heads(self) -> int:
        """KV heads of a rank, zero heads included."""
        if self.total_kv % self.size == 0 or self.size >= self.total_kv:
            return -(-self.total_kv // self.size)
        step = self.step // math.gcd(self.step, self.group)
        return -(-self.total_kv // (self.size * step)) * step

    @cached_property
    def heads(self) -> int:
        """Query heads of a rank, zero heads included: a multiple of its KV heads."""
        if self.size < self.total_kv:
            return self.kv_heads * self.group
        ranks = self.size // self.total_kv
        if self.total % self.size == 0 or self.group % self.step:
            return -(-self.group // ranks)
        return -(-self.group // (ranks * self.step)) * self.step

    def queries(self, rank: int) -> Share:
        """The rank's query heads."""
        keys = self.keys(rank)
        start = min(keys.start * self.group + rank % self._parts * self.heads, self.total)
        stop = min(start + self.heads, keys.stop * self.group)
        return Share(self.total, start, stop, self.heads, math.gcd(self.heads, self.kv_heads * self.group))

    def keys(self, rank: int) -> Share:
        """The rank's KV heads; query head h reads KV head h // group."""
        start = min(rank // self._parts * self.kv_heads, self.total_kv)
        return Share(self.total_kv, start, min(start + self.kv_heads, self.total_kv), self.kv_heads, self.kv_heads)

    def counts_keys(self, rank: int) -> bool:
        """Whether what is summed over all KV heads takes the rank's: of ranks with copies of a head the first."""
        return rank % self._parts == 0

    @property
    def zero_heads(self) -> int:
        """Zero query heads of all ranks together."""
        return self.size * self.heads - self.total

    @property
    def zero_kv_heads(self) -> int:
        """Zero KV heads of all ranks together; copies of a KV head are not zero heads."""
        return self.size * self.kv_heads - self._parts * self.total_kv

    @cached_property
    def _parts(self) -> int:
        """Ranks among which the group of a KV head is divided."""
        return -(-self.kv_heads * self.group // self.heads)


def share_heads(heads: int, kv_heads: int, size: int, step: int = 1) -> HeadShares:
    """The shares of `size` ranks. Raises ConfigError, see `check_ranks`."""
    check_ranks(heads, size)
    return HeadShares(heads, kv_heads, size, step)


def check_ranks(heads: int, size: int) -> None:
    """Raise ConfigError for more ranks than query heads: some would have no part in attention under any share."""
    if size > heads:
        raise ConfigError(
            f"{size} ranks cannot share {heads} attention heads; this model runs on any number of ranks up to {heads}"
        )
