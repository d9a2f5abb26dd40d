"""LatentAttention of the library: right, and the same bits however a prompt is cut and whoever is beside it."""

from __future__ import annotations

import pytest
import torch

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native.library import Library
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close
from tests.native.latent.cases import BLOCKS, SIZES, LatentCase, Sizes, attend

BOTH = (False, True)
SMALL = Sizes(5, 16, 8, 16, 32, 16)


@pytest.mark.parametrize(
    ("library", "sizes", "dtype", "int8"), crossed(LEVELS, SIZES, DTYPES, BOTH), indirect=["library"]
)
def test_attention_is_exact(library: Library, sizes: Sizes, dtype: torch.dtype, int8: bool) -> None:
    size = sizes.block_size
    longest = min(size * BLOCKS, 700)
    queries = [1, 1, 1, 1, 7, 33, 2, 1, 70]
    lengths = [1, size, size + 1, longest, 7, min(290, longest), min(258, longest), min(256, longest), 70]
    case = LatentCase(sizes, dtype, queries, lengths, int8=int8)
    assert_close(case.run(library), case.exact())


@pytest.mark.parametrize(
    ("library", "sizes", "dtype", "int8"), crossed(LEVELS, SIZES[1:], DTYPES, BOTH), indirect=["library"]
)
def test_bits_do_not_depend_on_cuts_neighbours_or_blocks(
    library: Library, sizes: Sizes, dtype: torch.dtype, int8: bool
) -> None:
    length = min(sizes.block_size * BLOCKS, 531)
    case = LatentCase(sizes, dtype, [length], [length], int8=int8)
    whole = case.run(library)
    for end in [*range(1, length, length // 12), length]:  # decoding
        assert torch.equal(case.run(library, slice(end - 1, end), [1], [end]), whole[end - 1 : end])
    for cuts in ([3], [64], [1, 100], [255, 256, 257]):  # chunks
        places = [0, *(cut for cut in cuts if cut < length), length]
        for first, end in zip(places, places[1:], strict=False):
            assert torch.equal(case.run(library, slice(first, end), [end - first], [end]), whole[first:end])
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(case.run(library), whole)
        assert torch.equal(case.run(library, slice(length - 1, length), [1], [length]), whole[-1:])
    order = torch.randperm(BLOCKS)  # block order[i] becomes block i
    moved = torch.empty_like(order).scatter_(0, order, torch.arange(BLOCKS))[case.table.long()].int()
    cache = LayerCache({name: plane[order] for name, plane in case.cache.items()})
    # among 18 sequences with one query each, more than a work item takes, and one with several
    ends = [*range(length - 17, length), length]
    tables = torch.cat([moved] * 20)
    batch = torch.cat((case.q[: ends[0]], *(case.q[end - 1 : end] for end in ends), case.q[length - 4 :]))
    queries, lengths = [ends[0], *[1] * len(ends), 4], [ends[0], *ends, length]
    among = attend(library, batch, case.maps, cache, tables, queries, lengths, sizes.scale)
    assert torch.equal(among[: ends[0]], whole[: ends[0]]) and torch.equal(among[-4:], whole[-4:])
    assert torch.equal(among[ends[0] : -4], torch.stack([whole[end - 1] for end in ends]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_query_does_not_see_does_not_matter(library: Library, dtype: torch.dtype) -> None:
    case = LatentCase(SMALL, dtype, [1, 40, 1], [18, 301, 260])
    table = torch.randperm(BLOCKS)[: 2 + 19 + 17].int()  # no block belongs to two
    case.table = torch.zeros(3, 19, dtype=torch.int32)
    for row, part in zip(case.table, table.split([2, 19, 17]), strict=True):
        row[: part.numel()] = part
    expected = case.run(library)
    unused = torch.tensor(sorted(set(range(BLOCKS)) - set(table.tolist())))
    for plane, bad in zip(case.cache.values(), (float("nan"), float("inf")), strict=True):
        for row, length in enumerate(case.lengths):  # stale slots of the last block
            plane[case.table[row, (length - 1) // 16], (length - 1) % 16 + 1 :] = bad
        plane[unused] = bad
    assert torch.equal(case.run(library), expected)
    # The newest token of the second sequence is broken: only its own query sees it.
    for plane in case.cache.values():
        kept = plane[case.table[1, 300 // 16], 300 % 16].clone()
        plane[case.table[1, 300 // 16], 300 % 16] = float("nan")
        broken = case.run(library)
        assert broken[40].isnan().all()
        assert torch.equal(broken[:40], expected[:40]) and torch.equal(broken[41:], expected[41:])
        plane[case.table[1, 300 // 16], 300 % 16] = kept
    case.q[5] = float("inf")  # a broken query among others
    broken = case.run(library)
    assert broken[5].isnan().all()
    assert torch.equal(broken[:5], expected[:5]) and torch.equal(broken[6:], expected[6:])


def test_strides(library: Library) -> None:
    """Queries out of a wider projection, planes of one tensor, a table cut out of a wider one."""
    case = LatentCase(SMALL, torch.float16, [1, 9], [37, 50])
    expected = case.run(library)
    fused = torch.randn(10, 8, 24).half()
    fused[:, :5], both = case.q, torch.cat(tuple(case.cache.values()), dim=2)
    wide = torch.full((2, 9), -1, dtype=torch.int32)
    wide[:, : case.table.shape[1]] = case.table
    case.q, case.table = fused[:, :5], wide[:, : case.table.shape[1]]
    case.cache = LayerCache(latent=both[..., :32], rope_key=both[..., 32:])
    assert torch.equal(case.run(library), expected)


def test_refusals(library: Library) -> None:
    case = LatentCase(SMALL, torch.float16, [1, 9], [37, 50])
    cache, scale = case.cache, SMALL.scale

    def refused(match: str, **changed: object) -> None:
        given = {"q": case.q, "maps": case.maps, "cache": cache, "table": case.table, "queries": [1, 9]}
        with pytest.raises(ValueError, match=match):
            attend(library, **{**given, "lengths": [37, 50], **changed}, scale=scale)  # type: ignore[arg-type]

    refused("torch.float64.* for queries", q=case.q.double())
    refused("torch.float32.* for queries", maps=case.maps.float())
    refused("torch.float32.* for queries", cache=LayerCache({name: x.float() for name, x in cache.items()}))
    refused("int32", table=case.table.long())
    refused("do not go together", maps=case.maps[:-1])
    refused("do not go together", maps=case.maps[:, :31])
    refused("do not go together", table=case.table[:1])
    refused("planes of", cache=LayerCache(latent=cache["latent"][:-1], rope_key=cache["rope_key"]))
    refused("do not lie together", q=case.q.transpose(1, 2).contiguous().transpose(1, 2))
    refused("do not lie together", maps=case.maps.t().contiguous().t())
    refused("a tensor on meta", cache=LayerCache({name: x.to("meta") for name, x in cache.items()}))
    for queries, lengths in (([1, 8], [37, 50]), ([1, 9], [37, 8]), ([1, 9], [37, 1000]), ([11, -1], [37, 50])):
        refused("lengths that do not", queries=queries, lengths=lengths)
    for block in (-1, BLOCKS):
        wrong = case.table.clone()
        wrong[1, 2] = block
        refused("a block that the cache does not have", table=wrong)
    assert attend(library, case.q[:0], case.maps, cache, case.table, [0, 0], [37, 50], scale).shape == (0, 5, 16)
