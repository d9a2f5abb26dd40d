"""How ranks share the heads of attention. Imports no torch: the launcher asks before it starts ranks."""

from __future__ import annotations

from atb_models.errors import ConfigError


def kv_heads_per_rank(heads: int, kv_heads: int, size: int) -> int:
    """KV heads a rank holds; when there are fewer heads than ranks, ranks share a head by holding copies.

    Raises ConfigError when `size` ranks cannot share the heads.
    """
    sizes = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
    if size not in sizes:
        raise ConfigError(
            f"{size} ranks cannot share {heads} attention heads and {kv_heads} key-value heads;"
            f" this model runs on {', '.join(map(str, sizes))}"
        )
    return max(1, kv_heads // size)


def counts_kv_heads(kv_heads: int, rank: int, size: int) -> bool:
    """Whether what is summed over all KV heads takes this rank's: of ranks with copies of a head only the first."""
    return rank == 0 or (rank - 1) * kv_heads // size != rank * kv_heads // size
