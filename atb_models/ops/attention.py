"""Rotary positions, and attention over the paged KV cache (see kv_cache.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.ops.cost import Cost, cost
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import is_scale, scale_of
from atb_models.ops.step import StepInput
from atb_models.ops.table import op

# Queries of one sequence that attend together in a prefill; bounds the scores to N * 256 * kv_len floats.
QUERY_TILE = 256
# Elements of K, and as many of V, that sequences with one query each gather together: 64 MiB of floats.
GATHER_ELEMENTS = 1 << 24


def _rope_tables_cost(out: tuple[Tensor, Tensor], positions_T: Tensor, inv_freq_D: Tensor, factor: float) -> Cost:
    flops = (3 if factor == 1 else 5) * positions_T.numel() * inv_freq_D.numel()  # multiply, cos and sin, the factor
    return cost(flops, (positions_T, inv_freq_D), out)


@op("RopeTables", cost=_rope_tables_cost)
def rope_tables(positions_T: Tensor, inv_freq_D: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """factor times cos and sin of position * inverse frequency -> two [T, D / 2] float32, or what a backend's `rope`
    takes. Su et al. 2021.
    """
    angle_TD = positions_T.float().unsqueeze(1) * inv_freq_D
    cos_TD, sin_TD = angle_TD.cos(), angle_TD.sin()
    return (cos_TD, sin_TD) if factor == 1 else (cos_TD * factor, sin_TD * factor)


def _rope_cost(out: tuple[Tensor, Tensor], q_TND: Tensor, k_TMD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Cost:
    rotated = (q_TND.shape[1] + k_TMD.shape[1]) * (2 * cos_TD.numel() if cos_TD.dim() == 2 else cos_TD.numel())
    return cost(3 * rotated, (q_TND, k_TMD, cos_TD, sin_TD), out)  # a backend's tables have both halves


@op("Rope", cost=_rope_cost)
def rope(q_TND: Tensor, k_TMD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the pairs (d, d + half) of queries and keys by their position's angle, in float32; half = cos_TD.shape[1].

    Values of a head beyond 2 * half stay as they are.
    """
    cos, sin = cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)
    return _rotate(q_TND, cos, sin), _rotate(k_TMD, cos, sin)


def _rotate(x_TND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.shape[-1]
    first, second = x_TND[..., :width].float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TND.dtype)
    return turned if width == x_TND.shape[-1] else torch.cat((turned, x_TND[..., width:]), dim=-1)


def _cache_operands(k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, step: StepInput) -> dict[str, Any]:
    return {"k_TMD": k_TMD, "v_TMD": v_TMD, **planes_by_name(cache), "slots_T": step.slots_T}


def planes_by_name(cache: LayerCache) -> dict[str, Tensor]:
    """The planes as operands."""
    return {f"{name}_cache_{letters(name, plane)}": plane for name, plane in cache.items()}


def letters(name: str, plane: Tensor) -> str:
    """The dimensions of a plane: a backend may have scales head after head, else they end in one of 1."""
    if plane.dim() == 4:
        return "PSMD"
    return "PMS" if is_scale(name) and plane.shape[-1] != 1 else "PSD"


def _cache_cost(out: None, k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, step: StepInput) -> Cost:
    keys, values = (
        caching(x.shape[0] * x.shape[1], x.shape[2], name, cache) for x, name in ((k_TMD, "k"), (v_TMD, "v"))
    )
    return keys + values + cost(0, (k_TMD, v_TMD, step.slots_T), ())


def caching(vectors: int, width: int, name: str, cache: LayerCache) -> Cost:
    """Of the write of vectors, as wide as they come, to a plane: its bytes, and a division for each int8."""
    written = vectors * width * cache[name].element_size()
    scale_PSM1 = cache.get(scale_of(name))
    if scale_PSM1 is None:
        return Cost(written=written)
    return Cost(vectors * width, written=written + vectors * scale_PSM1.element_size())


@op("ReshapeAndCache", cost=_cache_cost, operands=_cache_operands, products=("k_TMD", "v_TMD"))
def reshape_and_cache(k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, step: StepInput) -> None:
    """Write this step's keys and values to their slots, in the data type of the cache."""
    cache.write("k", k_TMD, step.slots_T)
    cache.write("v", v_TMD, step.slots_T)


def _rope_and_cache_operands(
    q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, cos_TD: Tensor, sin_TD: Tensor, cache: LayerCache, step: StepInput
) -> dict[str, Any]:
    given = {"q_TND": q_TND, "k_TMD": k_TMD, "v_TMD": v_TMD, "cos_TD": cos_TD, "sin_TD": sin_TD}
    return given | _cache_operands(k_TMD, v_TMD, cache, step)


def _rope_and_cache_cost(
    out_TND: Tensor,
    q_TND: Tensor,
    k_TMD: Tensor,
    v_TMD: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Cost:
    """The FLOPs of the parts; rotated keys go straight to their slots."""
    written = _cache_cost(None, k_TMD, v_TMD, cache, step)
    flops = _rope_cost((out_TND, k_TMD), q_TND, k_TMD, cos_TD, sin_TD).flops
    return cost(flops, (q_TND, cos_TD, sin_TD), (out_TND,)) + written


@op(
    "RopeAndCache",
    cost=_rope_and_cache_cost,
    operands=_rope_and_cache_operands,
    in_parts=True,
    products=("q_TND", "k_TMD", "cos_TD", "sin_TD"),
)
def rope_and_cache(
    q_TND: Tensor, k_TMD: Tensor, v_TMD: Tensor, cos_TD: Tensor, sin_TD: Tensor, cache: LayerCache, step: StepInput
) -> Tensor:
    """Rotate queries and keys as `rope` does, and write keys and values to their slots -> rotated queries [T, N, D]."""
    q_TND, k_TMD = rope(q_TND, k_TMD, cos_TD, sin_TD)
    reshape_and_cache(k_TMD, v_TMD, cache, step)
    return q_TND


def _attention_operands(q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> dict[str, Any]:
    lengths = {"query_lens": step.query_lens, "kv_lens": step.kv_lens}
    return {"q_TND": q_TND, **planes_by_name(cache), "block_table_BC": step.block_table_BC, **lengths, "scale": scale}


def _attention_cost(out_TND: Tensor, q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Cost:
    _, heads, head_dim = q_TND.shape
    return attending(heads, head_dim, cache, step) + cost(0, (q_TND,), (out_TND,))


def attending(heads: int, head_dim: int, cache: LayerCache, step: StepInput) -> Cost:
    """Of attention without its queries and results, by real lengths: two products for each pair of a query and a key
    that it sees, each sequence's K and V once."""
    pairs = sum(q * kv - q * (q - 1) // 2 for q, kv in zip(step.query_lens, step.kv_lens, strict=True))
    block_size = cache.k_PSMD.shape[1]
    token = sum(math.prod(plane.shape[1:]) // block_size * plane.element_size() for plane in cache.values())
    blocks = sum(-(-kv // block_size) for kv in step.kv_lens) * step.block_table_BC.element_size()
    return Cost(4 * heads * head_dim * pairs, sum(step.kv_lens) * token + blocks)


@op("PagedAttention", cost=_attention_cost, operands=_attention_operands, products=("q_TND",))
def paged_attention(q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    """Causal attention of each sequence's newest tokens, those of this step, over its cached ones -> [T, N, D].

    The tokens of a step are already in the cache. Scores, softmax and sums are float32.
    """
    block_table_BC = step.block_table_BC
    out_TND = torch.empty_like(q_TND)
    decode, first_token = [], 0
    for row, (query_len, kv_len) in enumerate(zip(step.query_lens, step.kv_lens, strict=True)):
        if query_len == 1:
            decode.append((row, first_token, kv_len))
        else:
            tokens = slice(first_token, first_token + query_len)
            _attend_chunk(out_TND[tokens], q_TND[tokens], cache, block_table_BC[row], kv_len, scale)
        first_token += query_len
    for group in similar_lengths(decode, cache.k_PSMD):
        _attend_single(out_TND, q_TND, cache, block_table_BC, group, scale)
    return out_TND


def similar_lengths(decode: list[tuple[int, int, int]], cache_PSMD: Tensor) -> Iterator[list[tuple[int, int, int]]]:
    """Groups of rows whose block counts share a power of two, so that padding at most doubles what is read.

    A group gathers no more than GATHER_ELEMENTS of a cache, unless a single row does.
    """
    block_size = cache_PSMD.shape[1]
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for row in decode:
        groups.setdefault(((row[2] - 1) // block_size).bit_length(), []).append(row)
    for group in groups.values():
        longest = max(kv_len for _, _, kv_len in group)
        per_row = -(-longest // block_size) * math.prod(cache_PSMD.shape[1:])
        count = max(1, GATHER_ELEMENTS // per_row)
        for start in range(0, len(group), count):
            yield group[start : start + count]


def _attend_single(
    out_TND: Tensor,
    q_TND: Tensor,
    cache: LayerCache,
    block_table_BC: Tensor,
    group: list[tuple[int, int, int]],
    scale: float,
) -> None:
    """One query a sequence: all sequences of `group` at once, padded to the longest."""
    rows, tokens, kv_lens = zip(*group, strict=True)
    longest = max(kv_lens)
    num_blocks = -(-longest // cache.k_PSMD.shape[1])
    at = row_index(tokens, q_TND.device)
    blocks = block_table_BC[row_index(rows, q_TND.device), :num_blocks]
    k, v = (
        cache.read(name, blocks).view(len(group), -1, *cache[name].shape[2:])[:, :longest].transpose(1, 2)
        for name in ("k", "v")
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


def row_index(places: tuple[int, ...], device: torch.device) -> slice | Tensor:
    """Ascending places as an index: a slice, which copies nothing, where they follow one another."""
    if places[-1] - places[0] + 1 == len(places):
        return slice(places[0], places[-1] + 1)
    return torch.tensor(places, device=device)


def _attend_chunk(
    out_TND: Tensor, q_TND: Tensor, cache: LayerCache, block_table_C: Tensor, kv_len: int, scale: float
) -> None:
    """A prompt or a chunk of one: tiles of queries, each over the keys it may see."""
    query_len = q_TND.shape[0]
    blocks = block_table_C[: -(-kv_len // cache.k_PSMD.shape[1])]
    k, v = (cache.read(name, blocks).transpose(0, 1) for name in ("k", "v"))
    positions = torch.arange(kv_len, device=q_TND.device)
    for start in range(0, query_len, QUERY_TILE):
        stop = min(start + QUERY_TILE, query_len)
        visible = kv_len - query_len + stop
        mask = positions[:visible] <= positions[visible - (stop - start) : visible].unsqueeze(1)
        q = q_TND[start:stop].transpose(0, 1).float()
        out = _sdpa(q[None], k[None, :, :visible], v[None, :, :visible], mask, scale)
        out_TND[start:stop] = out[0].transpose(0, 1).to(out_TND.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    if q.is_meta:
        return _fused_shape(q, k, v, mask)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def _fused_shape(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The result and workspace of torch's fused kernels: a wide mask and a sum for each query, never the scores.

    Torch's own rule for meta tensors is that of its unfused body, which holds all scores and copies of q, k and v.
    """
    if q.shape[-1] != k.shape[-1] or k.shape != v.shape or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"queries {tuple(q.shape)} do not go with keys {tuple(k.shape)} and values {tuple(v.shape)}:"
            " [rows, heads, tokens, head dimension]"
        )
    _bias = None if mask is None else mask.to(q.dtype)  # there until the end, as the sums are
    out, _sums = torch.empty_like(q), q.new_empty(q.shape[:-1])
    return out
