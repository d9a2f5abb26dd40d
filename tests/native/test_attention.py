"""PagedAttention of the library: right, and the same bits however a prompt is cut and whoever is beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atb_models.ops.native.library import Library
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close, attend, exact_attention

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


def case(
    shape: tuple[int, int, int, int], dtype: torch.dtype, queries: list[int], lengths: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a block table whose blocks are shuffled."""
    kv_heads, group, head_dim, block_size = shape
    k, v = (torch.randn(BLOCKS, block_size, kv_heads, head_dim).to(dtype) for _ in range(2))
    width = max(-(-length // block_size) for length in lengths)
    table = torch.stack([torch.randperm(BLOCKS)[:width] for _ in lengths]).int()
    return torch.randn(sum(queries), kv_heads * group, head_dim).to(dtype), k, v, table


@pytest.mark.parametrize(("library", "shape", "dtype"), crossed(LEVELS, SHAPES, DTYPES), indirect=["library"])
def test_attention_is_exact(library: Library, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    size = shape[3]
    longest = min(size * BLOCKS, 700)
    queries = [1, 1, 1, 1, 7, 33, 2, 1]
    lengths = [1, size, size + 1, longest, 7, min(290, longest), min(258, longest), min(256, longest)]
    q, k, v, table = case(shape, dtype, queries, lengths)
    assert_close(attend(library, q, k, v, table, queries, lengths), exact_attention(q, k, v, table, queries, lengths))


@pytest.mark.parametrize(("library", "shape", "dtype"), crossed(LEVELS, SHAPES, DTYPES), indirect=["library"])
def test_bits_do_not_depend_on_cuts_neighbours_or_blocks(
    library: Library, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    length = min(shape[3] * BLOCKS, 531)
    q, k, v, table = case(shape, dtype, [length], [length])
    whole = attend(library, q, k, v, table, [length], [length])
    step = max(1, length // 60)
    for end in [*range(1, length, step), length]:  # decoding
        assert torch.equal(attend(library, q[end - 1 : end], k, v, table, [1], [end]), whole[end - 1 : end])
    for cuts in ([3], [64], [1, 100], [255, 256, 257]):  # chunks
        places = [0, *(cut for cut in cuts if cut < length), length]
        for first, end in zip(places, places[1:], strict=False):
            chunk = attend(library, q[first:end], k, v, table, [end - first], [end])
            assert torch.equal(chunk, whole[first:end])
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(attend(library, q, k, v, table, [length], [length]), whole)
        assert torch.equal(attend(library, q[-1:], k, v, table, [1], [length]), whole[-1:])
    order = torch.randperm(BLOCKS)  # block order[i] becomes block i
    moved = torch.empty_like(order).scatter_(0, order, torch.arange(BLOCKS))[table.long()].int()
    other, other_k, other_v, other_table = case(shape, dtype, [5, 1], [9, 17])
    width = max(moved.shape[1], other_table.shape[1])
    tables = torch.zeros(3, width, dtype=torch.int32)
    for row, part in zip(tables, (other_table[0], moved[0], other_table[1]), strict=True):
        row[: part.numel()] = part
    batch = torch.cat((other[:5], q, other[5:]))
    among = attend(library, batch, k[order], v[order], tables, [5, length, 1], [9, length, 17])
    assert torch.equal(among[5:-1], whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_query_does_not_see_does_not_matter(library: Library, dtype: torch.dtype) -> None:
    shape, queries, lengths = (2, 3, 64, 16), [1, 40, 1], [18, 301, 260]
    q, k, v, table = case(shape, dtype, queries, lengths)
    table = torch.randperm(BLOCKS)[: 2 + 19 + 17].int()  # no block belongs to two
    tables = torch.zeros(3, 19, dtype=torch.int32)
    for row, part in zip(tables, table.split([2, 19, 17]), strict=True):
        row[: part.numel()] = part
    expected = attend(library, q, k, v, tables, queries, lengths)
    for row, length in enumerate(lengths):  # stale slots of the last block
        block = tables[row, (length - 1) // 16]
        k[block, (length - 1) % 16 + 1 :] = float("nan")
        v[block, (length - 1) % 16 + 1 :] = float("inf")
    unused = torch.tensor(sorted(set(range(BLOCKS)) - set(table.tolist())))
    k[unused], v[unused] = float("nan"), float("nan")
    assert torch.equal(attend(library, q, k, v, tables, queries, lengths), expected)
    # The newest token of the second sequence is broken: only its own query sees it.
    block = tables[1, 300 // 16]
    k[block, 300 % 16], v[block, 300 % 16] = float("nan"), float("nan")
    broken = attend(library, q, k, v, tables, queries, lengths)
    assert broken[40].isnan().all()
    assert torch.equal(broken[:40], expected[:40]) and torch.equal(broken[41:], expected[41:])
    # A broken query among others.
    q[5] = float("inf")
    broken = attend(library, q, k, v, tables, queries, lengths)
    assert (
        broken[5].isnan().all() and torch.equal(broken[:5], expected[:5]) and torch.equal(broken[6:40], expected[6:40])
    )


def test_strides(library: Library) -> None:
    """Queries out of a fused projection, keys and values of one tensor, a table cut out of a wider one."""
    lengths, queries = [37, 50], [1, 9]
    q, k, v, table = case((2, 2, 64, 16), torch.float16, queries, lengths)
    expected = attend(library, q, k, v, table, queries, lengths)
    fused = torch.randn(10, 8, 64).half()
    fused[:, :4] = q
    both = torch.stack((k, v), dim=1)
    wide = torch.full((2, 9), -1, dtype=torch.int32)
    wide[:, : table.shape[1]] = table
    part = wide[:, : table.shape[1]]
    assert torch.equal(attend(library, fused[:, :4], both[:, 0], both[:, 1], part, queries, lengths), expected)
    shifted = torch.empty(k.numel() + 1, dtype=k.dtype)[1:].view_as(k).copy_(k)  # 2 bytes off any alignment
    assert torch.equal(attend(library, q, shifted, v, table, queries, lengths), expected)


def test_heads_that_are_one(library: Library) -> None:
    """All heads' keys and values at one place: their stride is 0."""
    lengths, queries = [700, 130], [1, 1]
    q, k, v, table = case((1, 128, 128, 16), torch.float16, queries, lengths)
    alike = [x.expand(-1, -1, 128, -1) for x in (k, v)]
    assert alike[0].stride(2) == 0
    expected = attend(library, q, *(x.contiguous() for x in alike), table, queries, lengths)
    assert torch.equal(attend(library, q, *alike, table, queries, lengths), expected)


def test_refusals(library: Library) -> None:
    lengths, queries = [37, 50], [1, 9]
    q, k, v, table = case((2, 2, 64, 16), torch.float16, queries, lengths)

    def refused(match: str, *args: object) -> None:
        with pytest.raises(ValueError, match=match):
            attend(library, *args)  # type: ignore[arg-type]

    refused("queries of torch.float64", q.double(), k.double(), v.double(), table, queries, lengths)
    refused("keys of torch.float32", q, k.float(), v, table, queries, lengths)
    refused("int32", q, k, v, table.long(), queries, lengths)
    refused("do not go together", q[..., :32], k, v, table, queries, lengths)
    refused("do not go together", q[:, :3], k, v, table, queries, lengths)
    refused("do not go together", q, k, v, table[:1], queries, lengths)
    refused("do not lie together", q.transpose(1, 2).contiguous().transpose(1, 2), k, v, table, queries, lengths)
    refused("do not lie together", q, k.transpose(2, 3).contiguous().transpose(2, 3), v, table, queries, lengths)
    refused("a tensor on meta", q, k.to("meta"), v, table, queries, lengths)
    refused("lengths that do not", q, k, v, table, [1, 8], lengths)
    refused("lengths that do not", q, k, v, table, queries, [37, 8])
    refused("lengths that do not", q, k, v, table, queries, [37, 1000])
    refused("lengths that do not", q, k, v, table, [11, -1], lengths)
    for block in (-1, BLOCKS):
        wrong = table.clone()
        wrong[1, 2] = block
        refused("a block that the cache does not have", q, k, v, wrong, queries, lengths)
    assert attend(library, q[:0], k, v, table, [0, 0], lengths).shape == (0, 4, 64)
