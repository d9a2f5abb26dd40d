"""The sizes of latent attention. Imports no torch: configurations are read before torch is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentSizes:
    """Of a model's latent attention (DeepSeek-V2, section 2.1), as config.json has them.

    q_rank: width of what queries are made of, None where that is the hidden state. kv_rank: width of a token's latent,
    of which each head's keys and values are made. Of a head: `nope` values of keys and queries without a position,
    `rotary` rotated ones, `value` values of its result. A token leaves kv_rank + rotary values in the KV cache.
    """

    q_rank: int | None
    kv_rank: int
    nope: int
    rotary: int
    value: int

    @property
    def head(self) -> int:
        """Values of a query."""
        return self.nope + self.rotary
