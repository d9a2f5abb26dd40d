"""Rotary positions, the paged KV cache, and attention over it.

Cache layout, the same everywhere: K and V of a layer are [P, S, M, D]; slot = block * S + offset in the block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.ops.table import op

# Queries of one sequence that attend together in a prefill; bounds the scores to N * 256 * kv_len floats.
QUERY_TILE = 256


@op("RopeTables")
def rope_tables(positions_T: Tensor, inv_freq_D: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position / factor * inverse frequency -> two [T, D / 2] float32.

    Su et al. 2021; factor > 1 is linear position interpolation (Chen et al. 2023).
    """
    angle_TD = (positions_T.float() / factor).unsqueeze(1) * inv_freq_D
    return angle_TD.cos(), angle_TD.sin()


@op("Rope")
def rope(q_TND: Tensor, k_TMD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the pairs (d, d + D/2) of queries and keys by their position's angle, in float32."""
    cos, sin = cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)
    return _rotate(q_TND, cos, sin), _rotate(k_TMD, cos, sin)


def _rotate(x_TND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_TND.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TND.dtype)


@op("ReshapeAndCache")
def reshape_and_cache(
    k_TMD: Tensor, v_TMD: Tensor, k_cache_PSMD: Tensor, v_cache_PSMD: Tensor, slots_T: Tensor
) -> None:
    """Write this step's keys and values to their slots."""
    k_cache_PSMD.view(-1, *k_TMD.shape[1:])[slots_T] = k_TMD
    v_cache_PSMD.view(-1, *v_TMD.shape[1:])[slots_T] = v_TMD


@op("PagedAttention")
def paged_attention(
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    block_table_BC: Tensor,
    query_lens: list[int],
    kv_lens: list[int],
    scale: float,
) -> Tensor:
    """Causal attention of each sequence's newest `query_lens[b]` tokens over its `kv_lens[b]` cached ones -> [T, N, D].

    The tokens of a step are already in the cache. Scores, softmax and sums are float32.
    """
    out_TND = torch.empty_like(q_TND)
    decode, first_token = [], 0
    for row, (query_len, kv_len) in enumerate(zip(query_lens, kv_lens, strict=True)):
        if query_len == 1:
            decode.append((row, first_token, kv_len))
        else:
            tokens = slice(first_token, first_token + query_len)
            _attend_chunk(
                out_TND[tokens], q_TND[tokens], k_cache_PSMD, v_cache_PSMD, block_table_BC[row], kv_len, scale
            )
        first_token += query_len
    for group in _similar_lengths(decode, k_cache_PSMD.shape[1]):
        _attend_single(out_TND, q_TND, k_cache_PSMD, v_cache_PSMD, block_table_BC, group, scale)
    return out_TND


def _similar_lengths(decode: list[tuple[int, int, int]], block_size: int) -> list[list[tuple[int, int, int]]]:
    """Group rows whose block counts share a power of two, so that padding at most doubles what is read."""
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for row in decode:
        groups.setdefault(((row[2] - 1) // block_size).bit_length(), []).append(row)
    return list(groups.values())


def _attend_single(
    out_TND: Tensor,
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    block_table_BC: Tensor,
    group: list[tuple[int, int, int]],
    scale: float,
) -> None:
    """One query a sequence: all sequences of `group` at once, padded to the longest."""
    rows, tokens, kv_lens = zip(*group, strict=True)
    longest = max(kv_lens)
    num_blocks = -(-longest // k_cache_PSMD.shape[1])
    at = _index(tokens, q_TND.device)
    blocks = block_table_BC[_index(rows, q_TND.device), :num_blocks]
    k, v = (
        _gather(cache, blocks).view(len(group), -1, *cache.shape[2:])[:, :longest].transpose(1, 2).float()
        for cache in (k_cache_PSMD, v_cache_PSMD)
    )
    mask = None
    if min(kv_lens) < longest:
        lens_B = torch.tensor(kv_lens, device=q_TND.device)
        mask = (torch.arange(longest, device=q_TND.device) < lens_B.unsqueeze(1))[:, None, None, :]
        # What lies beyond a sequence's end is another's or stale; a NaN there would survive its weight of 0.
        for padded in (k, v):
            padded.masked_fill_(~mask.transpose(2, 3), 0)
    out = _sdpa(q_TND[at].unsqueeze(2).float(), k, v, mask, scale)
    out_TND[at] = out.squeeze(2).to(out_TND.dtype)


def _gather(cache_PSMD: Tensor, blocks: Tensor) -> Tensor:
    """A copy of these blocks, slot after slot; whole blocks at once, unlike advanced indexing."""
    return cache_PSMD.index_select(0, blocks.flatten()).flatten(0, 1)


def _index(places: tuple[int, ...], device: torch.device) -> slice | Tensor:
    """Ascending places as an index: a slice, which copies nothing, where they follow one another."""
    if places[-1] - places[0] + 1 == len(places):
        return slice(places[0], places[-1] + 1)
    return torch.tensor(places, device=device)


def _attend_chunk(
    out_TND: Tensor,
    q_TND: Tensor,
    k_cache_PSMD: Tensor,
    v_cache_PSMD: Tensor,
    block_table_C: Tensor,
    kv_len: int,
    scale: float,
) -> None:
    """A prompt or a chunk of one: tiles of queries, each over the keys it may see."""
    query_len = q_TND.shape[0]
    blocks = block_table_C[: -(-kv_len // k_cache_PSMD.shape[1])]
    k, v = (_gather(cache, blocks).transpose(0, 1).float() for cache in (k_cache_PSMD, v_cache_PSMD))
    positions = torch.arange(kv_len, device=q_TND.device)
    for start in range(0, query_len, QUERY_TILE):
        stop = min(start + QUERY_TILE, query_len)
        visible = kv_len - query_len + stop
        mask = positions[:visible] <= positions[visible - (stop - start) : visible].unsqueeze(1)
        q = q_TND[start:stop].transpose(0, 1).float()
        out = _sdpa(q[None], k[None, :, :visible], v[None, :, :visible], mask, scale)
        out_TND[start:stop] = out[0].transpose(0, 1).to(out_TND.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
