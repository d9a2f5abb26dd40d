"""Attention over the paged cache of latents, in two forms with the same results beyond rounding.

A head's key of a token is W_UK latent, its value W_UV latent, both rows of `kv_b_weight_OZ`. Expanded, keys and values
are made of the latents. Absorbed, (W_UK^T query) meets the latent itself, and the sum of latents becomes one of values:
all heads share one key of Z + Y values, whose first Z are its value too (DeepSeek-V2, section 2.1.2 and appendix C).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from atb_models.ops.attention import GATHER_ELEMENTS, QUERY_TILE, planes_by_name, row_index, similar_lengths
from atb_models.ops.cost import Cost, cost
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.latent.cost import LatentShape
from atb_models.ops.step import StepInput
from atb_models.ops.table import op


def latent_shape(q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache) -> LatentShape:
    """The sizes of a call. Raises ValueError for tensors that do not go together; they may be on meta."""
    (_, heads, width), (rows, latent), rotary = q_TND.shape, kv_b_weight_OZ.shape, cache.rope_key_PSY.shape[2]
    nope = width - rotary
    value = rows // heads - nope
    if rows % heads or value < 1 or nope < 0 or cache.latent_PSZ.shape[2] != latent:
        raise ValueError(
            f"queries {tuple(q_TND.shape)}, keys and values {tuple(kv_b_weight_OZ.shape)}, latents"
            f" {tuple(cache.latent_PSZ.shape)} and rotary keys {tuple(cache.rope_key_PSY.shape)} do not go together"
        )
    return LatentShape(heads, nope, rotary, value, latent)


def _operands(
    q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache, step: StepInput, scale: float
) -> dict[str, Any]:
    tensors = {"q_TND": q_TND, "kv_b_weight_OZ": kv_b_weight_OZ, **planes_by_name(cache)}
    lengths = {"query_lens": step.query_lens, "kv_lens": step.kv_lens}
    return {**tensors, "block_table_BC": step.block_table_BC, **lengths, "scale": scale}


def _cost(
    out_TND: Tensor, q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache, step: StepInput, scale: float
) -> Cost:
    """By real lengths: the FLOPs of each sequence's cheaper form, each sequence's latents once."""
    shape = latent_shape(q_TND, kv_b_weight_OZ, cache)
    flops = sum(shape.flops(*lengths) for lengths in zip(step.query_lens, step.kv_lens, strict=True))
    token = sum(math.prod(plane.shape[2:]) * plane.element_size() for plane in cache.values())
    block_size = cache.latent_PSZ.shape[1]
    blocks = sum(-(-length // block_size) for length in step.kv_lens) * step.block_table_BC.element_size()
    cached = Cost(0, sum(step.kv_lens) * token + blocks)
    return cached + cost(flops, (q_TND, kv_b_weight_OZ), (out_TND,))


@op("LatentAttention", cost=_cost, operands=_operands, products=("q_TND", "kv_b_weight_OZ"))
def latent_attention(q_TND: Tensor, kv_b_weight_OZ: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    """Causal attention of each sequence's newest tokens, those of this step, over its cached latents -> [T, N, values].

    Of a query the first Y values, which are rotated, meet the rotary keys, the others a head's own keys. Of
    `kv_b_weight_OZ` each head has the rows of its keys, then those of its values, O = N (D - Y + values). The tokens of
    a step are already in the cache. Scores, softmax, sums and what is made of latents are float32.
    """
    shape = latent_shape(q_TND, kv_b_weight_OZ, cache)
    maps_NOZ = kv_b_weight_OZ.float().unflatten(0, (shape.heads, -1))
    out_TND = q_TND.new_empty(*q_TND.shape[:2], shape.value)
    decode, first_token = [], 0
    for row, (query_len, kv_len) in enumerate(zip(step.query_lens, step.kv_lens, strict=True)):
        if query_len == 1:
            decode.append((row, first_token, kv_len))
        elif query_len:
            tokens = slice(first_token, first_token + query_len)
            blocks = step.block_table_BC[row, : -(-kv_len // cache.latent_PSZ.shape[1])]
            sequence = _Sequence(shape, maps_NOZ, *_cached(cache, blocks, kv_len), scale)
            attend = sequence.absorbed if shape.absorbs(query_len, kv_len) else sequence.expanded
            for at, heads, result in attend(q_TND[tokens].float()):
                out_TND[tokens][at, heads] = result
        first_token += query_len
    for group in similar_lengths(decode, cache.latent_PSZ):
        _attend_single(out_TND, q_TND, shape, maps_NOZ, cache, step.block_table_BC, group, scale)
    return out_TND


def _cached(cache: LayerCache, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Latents [length, Z] and rotary keys [length, Y] of a sequence, float32."""
    return cache.read("latent", blocks)[:length], cache.read("rope_key", blocks)[:length]


class _Sequence:
    """A sequence whose last queries attend: their places, heads and results come tile by tile."""

    def __init__(
        self, shape: LatentShape, maps_NOZ: Tensor, latent_CZ: Tensor, rope_key_CY: Tensor, scale: float
    ) -> None:
        self.shape, self.maps_NOZ, self.scale = shape, maps_NOZ, scale
        self.latent_CZ, self.rope_key_CY = latent_CZ, rope_key_CY

    def absorbed(self, q_QND: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """In the absorbed form, all heads at once."""
        key_CX = torch.cat((self.rope_key_CY, self.latent_CZ), dim=1)
        for at, visible, hidden_QC in self._tiles(len(q_QND)):
            query_QNX = absorbed_queries(q_QND[at], self.shape, self.maps_NOZ)
            scores_QNC = (query_QNX.flatten(0, 1) @ key_CX[:visible].t()).unflatten(0, query_QNX.shape[:2])
            weights_QNC = self._weights(scores_QNC, hidden_QC.unsqueeze(1))
            sums_QNZ = (weights_QNC.flatten(0, 1) @ self.latent_CZ[:visible]).unflatten(0, weights_QNC.shape[:2])
            yield at, slice(None), values_of(sums_QNZ, self.shape, self.maps_NOZ)

    def expanded(self, q_QND: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """In the expanded form: keys and values of so many heads that they take no more than GATHER_ELEMENTS."""
        shape, q_NQD = self.shape, q_QND.transpose(0, 1)
        per_head = len(self.latent_CZ) * (shape.nope + shape.value)
        count = max(1, GATHER_ELEMENTS // per_head)
        for first in self._one_on_meta(range(0, shape.heads, count)):
            heads = slice(first, first + count)
            expanded_NOC = self.maps_NOZ[heads] @ self.latent_CZ.t()
            key_NKC, value_NUC = expanded_NOC.split((shape.nope, shape.value), dim=1)
            for at, visible, hidden_QC in self._tiles(len(q_QND)):
                rotary_NQY, nope_NQK = q_NQD[heads, at].split((shape.rotary, shape.nope), dim=2)
                scores_NQC = nope_NQK @ key_NKC[..., :visible] + rotary_NQY @ self.rope_key_CY[:visible].t()
                weights_NQC = self._weights(scores_NQC, hidden_QC)
                yield at, heads, (weights_NQC @ value_NUC[..., :visible].transpose(1, 2)).transpose(0, 1)

    def _tiles(self, queries: int) -> Iterator[tuple[slice, int, Tensor]]:
        """Of some queries each: their places, how many tokens the last one sees, and what the others do not see."""
        length, device = len(self.latent_CZ), self.latent_CZ.device
        positions = torch.arange(length, device=device)
        most = min(QUERY_TILE, queries)
        for stop in self._one_on_meta(range(queries, 0, -QUERY_TILE)):
            start = max(0, stop - most)
            visible = length - queries + stop
            own_Q1 = positions[visible - (stop - start) : visible].unsqueeze(1)
            yield slice(start, stop), visible, positions[:visible] > own_Q1

    def _one_on_meta(self, places: range) -> range:
        """All of them; on meta tensors the first alone: no other has a larger workspace, and none outlives its turn."""
        return places[:1] if self.latent_CZ.is_meta else places

    def _weights(self, scores: Tensor, hidden: Tensor) -> Tensor:
        return scores.mul_(self.scale).masked_fill_(hidden, -torch.inf).softmax(dim=-1)


def absorbed_queries(q_TND: Tensor, shape: LatentShape, maps_NOZ: Tensor) -> Tensor:
    """Queries that meet rotary keys and latents, in this order: [T, N, Y + Z]."""
    rotary_TNY, nope_TNK = q_TND.split((shape.rotary, shape.nope), dim=2)
    absorbed_NTZ = nope_TNK.transpose(0, 1) @ maps_NOZ[:, : shape.nope]
    return torch.cat((rotary_TNY, absorbed_NTZ.transpose(0, 1)), dim=2)


def values_of(sums_TNZ: Tensor, shape: LatentShape, maps_NOZ: Tensor) -> Tensor:
    """Weighted sums of latents as each head's values [T, N, values]."""
    return (sums_TNZ.transpose(0, 1) @ maps_NOZ[:, shape.nope :].transpose(1, 2)).transpose(0, 1)


def _attend_single(
    out_TND: Tensor,
    q_TND: Tensor,
    shape: LatentShape,
    maps_NOZ: Tensor,
    cache: LayerCache,
    block_table_BC: Tensor,
    group: list[tuple[int, int, int]],
    scale: float,
) -> None:
    """One query a sequence, in the absorbed form: all sequences of `group` at once, padded to the longest."""
    rows, tokens, kv_lens = zip(*group, strict=True)
    longest, device = max(kv_lens), q_TND.device
    at = row_index(tokens, device)
    blocks = block_table_BC[row_index(rows, device), : -(-longest // cache.latent_PSZ.shape[1])]
    latent_BCZ, rope_key_BCY = (
        cache.read(name, blocks).unflatten(0, (len(group), -1))[:, :longest] for name in ("latent", "rope_key")
    )
    lens_B = torch.tensor(kv_lens, device=device)
    beyond_BC = torch.arange(longest, device=device) >= lens_B.unsqueeze(1)
    # What lies beyond a sequence's end is another's or stale; a NaN there would survive its weight of 0.
    for padded in (latent_BCZ, rope_key_BCY):
        padded.masked_fill_(beyond_BC.unsqueeze(2), 0)
    query_BNX = absorbed_queries(q_TND[at].float(), shape, maps_NOZ)
    scores_BNC = query_BNX @ torch.cat((rope_key_BCY, latent_BCZ), dim=2).transpose(1, 2)
    weights_BNC = scores_BNC.mul_(scale).masked_fill_(beyond_BC.unsqueeze(1), -torch.inf).softmax(dim=-1)
    out_TND[at] = values_of(weights_BNC @ latent_BCZ, shape, maps_NOZ).to(out_TND.dtype)
