"""Random shapes and values for the arguments of operations."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.weight import Layout, Weight
from tests.records import attention_step, kv_cache, slots_step


@dataclass(frozen=True)
class EqualRanks:
    """A group whose ranks all hold the same tensor."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.mul_(self.size)

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.size, dim=-1)


class Draw:
    """Random shapes and values. T tokens, H hidden size, D head dimension and so on are drawn once a case."""

    def __init__(self, seed: str, dtype: torch.dtype) -> None:
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(self.random.randrange(1 << 30))
        self.dtype = dtype
        self.T, self.H, self.V = self.to(1, 20), self.to(2, 24), self.to(2, 30)
        self.E = self.to(2, 9)
        self.K = self.to(1, self.E)
        self.M, self.D, self.S = self.to(1, 3), 2 * self.to(2, 6), self.to(2, 16)
        self.N = self.M * self.to(1, 3)

    def to(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def floats(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.torch).to(dtype or self.dtype)

    def single(self, *shape: int) -> Tensor:
        return self.floats(*shape, dtype=torch.float32)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.torch, dtype=torch.int32)

    def choices(self) -> Tensor:
        """[T, K] different experts for each token."""
        return self.single(self.T, self.E).topk(self.K).indices

    def group(self) -> EqualRanks:
        return EqualRanks(0, self.random.choice((1, 2, 4, 8)))

    def weight(self, *shape: int) -> Weight:
        return Weight.plain(self.floats(*shape))

    def int8(self, *shape: int) -> Tensor:
        return torch.randint(-128, 128, shape, generator=self.torch).to(torch.int8)

    def quantized(self, *shape: int) -> Weight:
        """With int8 activations, whose scales are static or made at run time."""
        layout = Layout.integers(shape, activations=self.random.choice(("token", "static")))
        beside = {
            name: self.integers(90, *of.shape) if of.dtype == torch.int32 else self.single(*of.shape).abs() + 0.1
            for name, of in layout.beside.items()
        }
        return Weight(layout, self.int8(*shape), **beside)

    def cache(self, blocks: int) -> LayerCache:
        return kv_cache(*(self.floats(blocks, self.S, self.M, self.D) for _ in range(2)))


def latents(d: Draw, blocks: int) -> LayerCache:
    """Latents as wide as the vocabulary, rotary keys as wide as a head."""
    return LayerCache(latent=d.floats(blocks, d.S, d.V), rope_key=d.floats(blocks, d.S, d.D))


def latent_cached(d: Draw) -> tuple[Any, ...]:
    slots = torch.randperm(d.T + 30, generator=d.torch)[: d.T].int()
    cache = latents(d, -(-(d.T + 30) // d.S))
    return d.floats(d.T, d.V), d.floats(d.T, d.D), cache, slots_step(slots)


def latent_rotated(d: Draw) -> tuple[Any, ...]:
    latent, key, cache, step = latent_cached(d)
    tables = d.single(d.T, d.D // 2), d.single(d.T, d.D // 2)
    return d.floats(d.T, d.N, d.D + d.K), latent, key, *tables, cache, step


def latent_attention(d: Draw) -> tuple[Any, ...]:
    """K values without a position, results of E values."""
    kv_lens = [d.to(1, 40) for _ in range(d.to(1, 5))]
    query_lens = [d.random.choice((1, d.to(1, n))) for n in kv_lens]
    table = d.integers(30, len(kv_lens), -(-max(kv_lens) // d.S) + d.to(0, 2))
    q, maps = d.floats(sum(query_lens), d.N, d.D + d.K), d.floats(d.N * (d.K + d.E), d.V)
    return q, maps, latents(d, 30), attention_step(query_lens, kv_lens, table), d.D**-0.5
