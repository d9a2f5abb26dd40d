"""Caches of latents and queries that meet them, with exact results."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache, quantize_vectors
from atb_models.ops.native.latent.attention import latent_attention
from atb_models.ops.native.library import Library

BLOCKS = 48


@dataclass(frozen=True)
class Sizes:
    """Of a head: values without a position, rotated ones, values of the result; width of a latent, slots of a block."""

    heads: int
    nope: int
    rotary: int
    value: int
    latent: int
    block_size: int

    @property
    def scale(self) -> float:
        return (self.nope + self.rotary) ** -0.5


SIZES = [
    Sizes(16, 128, 64, 128, 512, 128),  # DeepSeek-V2-Lite
    Sizes(5, 16, 8, 16, 32, 16),
    Sizes(70, 12, 6, 7, 40, 32),
    Sizes(1, 7, 2, 10, 33, 8),
    Sizes(3, 256, 4, 250, 24, 16),
]


class LatentCase:
    """Queries, maps, planes, and a block table whose blocks are shuffled. int8: planes with scales."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, queries: list[int], lengths: list[int], *, int8: bool = False):
        self.sizes, self.queries, self.lengths = sizes, queries, lengths
        planes = {"latent": sizes.latent, "rope_key": sizes.rotary}
        vectors = {name: torch.randn(BLOCKS, sizes.block_size, width) for name, width in planes.items()}
        if int8:
            kept = {name: quantize_vectors(x) for name, x in vectors.items()}
            self.cache = LayerCache({name: integers for name, (integers, _) in kept.items()})
            self.cache.update({f"{name}_scale": scale for name, (_, scale) in kept.items()})
        else:
            self.cache = LayerCache({name: x.to(dtype) for name, x in vectors.items()})
        width = max(-(-length // sizes.block_size) for length in lengths)
        self.table = torch.stack([torch.randperm(BLOCKS)[:width] for _ in lengths]).int()
        self.q = torch.randn(sum(queries), sizes.heads, sizes.rotary + sizes.nope).to(dtype)
        rows = sizes.heads * (sizes.nope + sizes.value)
        self.maps = (torch.randn(rows, sizes.latent) * sizes.latent**-0.5).to(dtype)

    def run(self, library: Library, rows: slice = slice(None), queries: list[int] | None = None,
            lengths: list[int] | None = None) -> Tensor:  # fmt: skip
        """By the library, of all sequences or of some queries of the only one."""
        queries, lengths = queries or self.queries, lengths or self.lengths
        return attend(library, self.q[rows], self.maps, self.cache, self.table, queries, lengths, self.sizes.scale)

    def exact(self) -> Tensor:
        """In float64, one query after the other, with keys and values expanded."""
        sizes, token = self.sizes, 0
        maps = self.maps.double().view(sizes.heads, -1, sizes.latent)
        out = torch.empty(*self.q.shape[:2], sizes.value, dtype=torch.float64)
        for row, (count, length) in enumerate(zip(self.queries, self.lengths, strict=True)):
            latent, rotary_key = (self.vectors(name, row, length) for name in ("latent", "rope_key"))
            keys, values = torch.einsum("noz,tz->tno", maps, latent).split((sizes.nope, sizes.value), dim=2)
            for i in range(count):
                seen, query = length - count + i + 1, self.q[token].double()
                scores = torch.einsum("tnk,nk->nt", keys[:seen], query[:, sizes.rotary :])
                scores += query[:, : sizes.rotary] @ rotary_key[:seen].t()
                out[token] = torch.einsum("nt,tnu->nu", (scores * sizes.scale).softmax(1), values[:seen])
                token += 1
        return out

    def vectors(self, name: str, row: int, length: int) -> Tensor:
        blocks = self.table[row].long()
        x, scale = self.cache[name][blocks].double(), self.cache.get(f"{name}_scale")
        return (x if scale is None else x * scale[blocks]).flatten(0, 1)[:length]


def attend(
    library: Library,
    q: Tensor,
    maps: Tensor,
    cache: LayerCache,
    table: Tensor,
    queries: list[int],
    lengths: list[int],
    scale: float,
) -> Tensor:
    starts = torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32)
    return latent_attention(library, q, maps, cache, table, starts, torch.tensor(lengths, dtype=torch.int32), scale)
