"""An int8 KV cache of the library: the integers of torch, attention to what they stand for, the same bits anyhow."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from atb_models.ops import attention as reference
from atb_models.ops.kv_cache import LayerCache, quantize_vectors
from atb_models.ops.native.attention import paged_attention
from atb_models.ops.native.library import Library
from atb_models.ops.native.rope import rope_and_cache
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close, exact_attention
from tests.records import slots_step

# KV heads, queries a KV head, head dimension, block size
SHAPES = [
    (4, 1, 128, 128),
    (2, 4, 64, 16),
    (1, 8, 128, 32),
    (3, 3, 80, 32),
    (2, 1, 16, 8),
    (1, 71, 24, 16),
    (2, 2, 256, 128),
]
BLOCKS = 48


class Case:
    """Queries, a cache whose planes are views, and a block table whose blocks are shuffled."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, queries: list[int], lengths: list[int]):
        kv_heads, group, head_dim, block_size = shape
        both = torch.randn(BLOCKS, 2, block_size, kv_heads, head_dim) * torch.rand(BLOCKS, 1, block_size, kv_heads, 1)
        integers, scales = quantize_vectors(both)
        (self.k, self.v), (self.k_scale, self.v_scale) = integers.unbind(1), scales.unbind(1)
        width = max(-(-length // block_size) for length in lengths)
        self.table = torch.stack([torch.randperm(BLOCKS)[:width] for _ in lengths]).int()
        self.q = torch.randn(sum(queries), kv_heads * group, head_dim).to(dtype)

    def exact(self, queries: list[int], lengths: list[int]) -> Tensor:
        k, v = self.k.double() * self.k_scale, self.v.double() * self.v_scale
        return exact_attention(self.q, k, v, self.table, queries, lengths)

    def run(self, library: Library, queries: list[int], lengths: list[int], rows: slice = slice(None)) -> Tensor:
        return self.attend(library, self.q[rows], self.table, queries, lengths)

    def attend(self, library: Library, q: Tensor, table: Tensor, queries: list[int], lengths: list[int]) -> Tensor:
        starts = torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32)
        kv_lens, scale = torch.tensor(lengths, dtype=torch.int32), q.shape[-1] ** -0.5
        scales = self.k_scale, self.v_scale
        return paged_attention(library, q, self.k, self.v, table, starts, kv_lens, scale, scales)


@pytest.mark.parametrize(("library", "shape", "dtype"), crossed(LEVELS, SHAPES, DTYPES), indirect=["library"])
def test_attention_is_exact(library: Library, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    size = shape[3]
    longest = min(size * BLOCKS, 700)
    queries = [1, 1, 1, 1, 7, 33, 2, 1]
    lengths = [1, size, size + 1, longest, 7, min(290, longest), min(258, longest), min(256, longest)]
    case = Case(shape, dtype, queries, lengths)
    assert_close(case.run(library, queries, lengths), case.exact(queries, lengths))


@pytest.mark.parametrize(("library", "shape", "dtype"), crossed(LEVELS, SHAPES, DTYPES), indirect=["library"])
def test_bits_do_not_depend_on_cuts_neighbours_or_threads(
    library: Library, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    length = min(shape[3] * BLOCKS, 531)
    case = Case(shape, dtype, [length], [length])
    whole = case.run(library, [length], [length])
    for end in [*range(1, length, max(1, length // 60)), length]:  # decoding
        assert torch.equal(case.run(library, [1], [end], slice(end - 1, end)), whole[end - 1 : end])
    for cuts in ([3], [64], [1, 100], [255, 256, 257]):  # chunks
        places = [0, *(cut for cut in cuts if cut < length), length]
        for first, end in zip(places, places[1:], strict=False):
            assert torch.equal(case.run(library, [end - first], [end], slice(first, end)), whole[first:end])
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(library, [length], [length]), whole)
        assert torch.equal(case.run(library, [1], [length], slice(length - 1, length)), whole[-1:])
    tables = torch.cat((case.table.flip(1), case.table, case.table.roll(1, 1)))
    batch = torch.cat((case.q[:5], case.q, case.q[:1]))
    among = case.attend(library, batch, tables, [5, length, 1], [9, length, 17])
    assert torch.equal(among[5:-1], whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_query_does_not_see_does_not_matter(library: Library, dtype: torch.dtype) -> None:
    shape, queries, lengths = (2, 3, 64, 16), [1, 40, 1], [18, 301, 260]
    case = Case(shape, dtype, queries, lengths)
    table = torch.randperm(BLOCKS)[: 2 + 19 + 17].int()  # no block belongs to two
    case.table = torch.zeros(3, 19, dtype=torch.int32)
    for row, part in zip(case.table, table.split([2, 19, 17]), strict=True):
        row[: part.numel()] = part
    expected = case.run(library, queries, lengths)
    for row, length in enumerate(lengths):  # stale slots of the last block
        block = case.table[row, (length - 1) // 16]
        case.k_scale[block, (length - 1) % 16 + 1 :] = float("nan")
        case.v_scale[block, (length - 1) % 16 + 1 :] = float("inf")
    assert torch.equal(case.run(library, queries, lengths), expected)
    # The newest token of the second sequence is broken: only its own query sees it.
    block = case.table[1, 300 // 16]
    for scale in (case.k_scale, case.v_scale):
        kept = scale[block, 300 % 16].clone()
        scale[block, 300 % 16] = float("nan")
        broken = case.run(library, queries, lengths)
        assert broken[40].isnan().all()
        assert torch.equal(broken[:40], expected[:40]) and torch.equal(broken[41:], expected[41:])
        scale[block, 300 % 16] = kept


HEADS = [[128, 64], [80, 40], [16, 8], [64, 16], [7, 3], [256, 128]]  # head_dim, half


@pytest.mark.parametrize(("library", "head_dim", "half", "dtype"), crossed(LEVELS, HEADS, DTYPES), indirect=["library"])
def test_the_integers_and_scales_of_torch(library: Library, dtype: torch.dtype, head_dim: int, half: int) -> None:
    """Alone and in company, of zeros and of numbers that are none; nothing else is written."""
    tokens, heads, kv_heads = 29, 6, 2
    fused = (torch.randn(tokens, heads + 2 * kv_heads, head_dim) * 10 ** torch.randn(tokens, 1, 1)).to(dtype)
    q, k, v = fused.split([heads, kv_heads, kv_heads], dim=1)
    v[3], k[4] = 0, 0
    k[5, 0, 2], v[6, 1, 0] = float("nan"), float("inf")
    angle, slots = torch.rand(tokens, half) * 6, torch.randperm(5 * 16)[:tokens].int()
    rows = (q, k, v, angle.cos(), angle.sin())
    if head_dim == 2 * half:
        expected = empty_cache(kv_heads, head_dim)
        want = reference.rope_and_cache.reference(*rows, expected, slots_step(slots))
    else:  # the reference rotates whole heads
        expected, full = empty_cache(kv_heads, head_dim), [x.clone() for x in (q, k)]
        for x, y in zip(full, (q, k), strict=True):
            x[..., : 2 * half] = reference.rope.reference(y[..., : 2 * half], y[..., : 2 * half], *rows[3:])[0]
        want = full[0]
        reference.reshape_and_cache.reference(full[1], v, expected, slots_step(slots))
    cache = empty_cache(kv_heads, head_dim)
    got = write(library, rows, cache, slots)
    assert torch.equal(got, want)
    finite = ~expected["k_scale"].isnan() & ~expected["v_scale"].isinf()
    for name, plane in cache.items():
        theirs = expected[name]
        where = finite.expand_as(plane)
        assert torch.equal(plane[where], theirs[where])
        if name.endswith("scale"):
            assert torch.equal(plane.nan_to_num(), theirs.nan_to_num())
    alone = empty_cache(kv_heads, head_dim)
    for token in range(tokens):
        write(library, tuple(x[token : token + 1] for x in rows), alone, slots[token : token + 1])
    assert all(torch.equal(alone[name].nan_to_num(), cache[name].nan_to_num()) for name in cache)


def empty_cache(kv_heads: int, head_dim: int) -> LayerCache:
    """Five blocks of 16, full of what nobody wrote."""
    vectors, scales = (
        torch.full((5, 16, kv_heads, head_dim), 99, dtype=torch.int8),
        torch.full((5, 16, kv_heads, 1), 9.0),
    )
    return LayerCache(k=vectors, v=vectors.clone(), k_scale=scales, v_scale=scales.clone())


def write(library: Library, rows: tuple[Tensor, ...], cache: LayerCache, slots: Tensor) -> Tensor:
    return rope_and_cache(library, *rows, cache.k_PSMD, cache.v_PSMD, slots, (cache["k_scale"], cache["v_scale"]))


def test_refusals(library: Library) -> None:
    case = Case((2, 2, 64, 16), torch.float16, [1, 9], [37, 50])
    starts, lens = torch.tensor([0, 1, 10], dtype=torch.int32), torch.tensor([37, 50], dtype=torch.int32)
    for k, scales, match in (
        (case.k.half(), (case.k_scale, case.v_scale), "keys of torch.float16"),
        (case.k, None, "keys of torch.int8"),
        (case.k, (case.k_scale.half(), case.v_scale), "of torch.float16 on cpu do not go with a cache"),
        (case.k, (case.k_scale, case.v_scale[:, :4]), "do not go with a cache"),
        (case.k, (case.k_scale[..., 0], case.v_scale), "do not go with a cache"),
        (case.k, (case.k_scale.to("meta"), case.v_scale), "on meta do not go with a cache"),
    ):
        with pytest.raises(ValueError, match=match):
            paged_attention(library, case.q, k, case.v, case.table, starts, lens, 0.1, scales)
    wide = torch.zeros(3, 2, 300)
    cache = empty_cache(2, 300)
    with pytest.raises(ValueError, match="heads of 300 elements as int8, at most 256"):
        write(library, (wide, wide, wide, torch.zeros(3, 150), torch.zeros(3, 150)), cache, torch.arange(3).int())
    with pytest.raises(ValueError, match="a slot that the cache does not have"):
        rows = tuple(x[..., :64].contiguous() for x in (wide, wide, wide))
        write(library, (*rows, torch.zeros(3, 32), torch.zeros(3, 32)), empty_cache(2, 64), torch.arange(78, 81).int())
