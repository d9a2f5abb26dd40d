"""How ranks share heads: every number of query heads, KV heads and ranks up to 64, and a few by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.layers.attention import Attention
from atb_models.layers.build import Build, ParallelGroup
from atb_models.layers.heads import HeadShares, check_ranks, share_heads
from atb_models.layers.parameter import fillings
from atb_models.layers.storage import Quantization, Storage
from tests.records import build_of, part_of

MOST = 64


@pytest.fixture(autouse=True)
def plain_weights() -> None:
    """Whatever an engine of an earlier test has bound."""
    ops.bind("reference")


def all_shares() -> Iterator[HeadShares]:
    for heads in range(1, MOST + 1):
        for kv_heads in (n for n in range(1, heads + 1) if heads % n == 0):
            for size in range(1, heads + 1):
                yield share_heads(heads, kv_heads, size)


def test_every_head_is_there_once_beside_its_kv_head() -> None:
    """In the rank's own matrices query i reads KV head i // (heads / kv_heads), zero heads among them."""
    for shares in all_shares():
        assert shares.heads % shares.kv_heads == 0
        local, held, kv_held, counted = shares.heads // shares.kv_heads, [], 0, []
        for rank in range(shares.size):
            queries, keys = shares.queries(rank), shares.keys(rank)
            assert (queries.width, keys.width) == (shares.heads, shares.kv_heads), shares
            held += range(*queries.span)
            kv_held += keys.stop - keys.start
            counted += range(*keys.span) if shares.counts_keys(rank) else ()
            for at, head in enumerate(range(*queries.span)):
                assert at < shares.heads and head // shares.group == keys.start + at // local < keys.stop, shares
            assert keys.start + shares.kv_heads >= keys.stop, shares
            assert queries.start % queries.step == 0 or queries.start == queries.stop, shares
        assert held == list(range(shares.total)) and counted == list(range(shares.total_kv)), shares
        assert kv_held == shares.size * shares.kv_heads - shares.zero_kv_heads, shares
        assert shares.zero_heads == shares.size * shares.heads - shares.total, shares


def test_the_fewest_heads_of_whole_groups_and_of_parts_of_one() -> None:
    """The rule written out: whole groups, or the smallest part of a group with which all parts find a rank."""
    for shares in all_shares():
        kv_heads, group, size = shares.total_kv, shares.group, shares.size
        whole = (-(-kv_heads // size) * group, -(-kv_heads // size))
        parts = [(part, 1) for part in range(1, group + 1) if kv_heads * -(-group // part) <= size]
        assert (shares.heads, shares.kv_heads) == min([whole, *parts]), shares


def test_numbers_that_divide_have_no_zero_heads() -> None:
    for shares in all_shares():
        if shares.total % shares.size == 0 and (
            shares.total_kv % shares.size == 0 or shares.size % shares.total_kv == 0
        ):
            assert shares.heads == shares.total // shares.size and not shares.zero_heads and not shares.zero_kv_heads


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "queries", "keys"),
    [
        (14, 2, 4, [(0, 4), (4, 7), (7, 11), (11, 14)], [(0, 1), (0, 1), (1, 2), (1, 2)]),
        (32, 32, 3, [(0, 11), (11, 22), (22, 32)], [(0, 11), (11, 22), (22, 32)]),
        (28, 4, 3, [(0, 14), (14, 28), (28, 28)], [(0, 2), (2, 4), (4, 4)]),
        (8, 2, 3, [(0, 4), (4, 8), (8, 8)], [(0, 1), (1, 2), (2, 2)]),
        (8, 2, 8, [(n, n + 1) for n in range(8)], [(n // 4, n // 4 + 1) for n in range(8)]),
        (6, 1, 4, [(0, 2), (2, 4), (4, 6), (6, 6)], [(0, 1), (0, 1), (0, 1), (1, 1)]),
    ],
)
def test_by_hand(
    heads: int, kv_heads: int, size: int, queries: list[tuple[int, int]], keys: list[tuple[int, int]]
) -> None:
    shares = share_heads(heads, kv_heads, size)
    assert [shares.queries(rank).span for rank in range(size)] == queries
    assert [shares.keys(rank).span for rank in range(size)] == keys


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "step", "wanted"),
    [
        (32, 32, 3, 2, (12, 12)),  # not 11
        (32, 32, 3, 4, (12, 12)),
        (28, 4, 3, 4, (28, 4)),  # whole groups of 7: the least multiple of 4 is all of them
        (32, 4, 3, 4, (16, 2)),
        (32, 4, 12, 2, (4, 1)),  # not 3 of a group of 8
        (14, 2, 4, 2, (4, 1)),  # a group of 7 has no parts that begin at multiples of 2
        (32, 32, 32, 2, (1, 1)),  # divides: as it is
        (32, 4, 8, 8, (4, 1)),
    ],
)
def test_a_step_of_heads_where_some_are_zeros_anyway(
    heads: int, kv_heads: int, size: int, step: int, wanted: tuple[int, int]
) -> None:
    shares = share_heads(heads, kv_heads, size, step)
    assert (shares.heads, shares.kv_heads) == wanted
    held = [head for rank in range(size) for head in range(*shares.queries(rank).span)]
    assert held == list(range(heads))
    beside = [head // shares.group for head in held]
    assert beside == [
        shares.keys(rank).start + at // (shares.heads // shares.kv_heads)
        for rank in range(size)
        for at in range(shares.queries(rank).stop - shares.queries(rank).start)
    ]


@pytest.mark.parametrize(("heads", "size"), [(8, 9), (1, 2)])
def test_more_ranks_than_heads(heads: int, size: int) -> None:
    message = f"{size} ranks cannot share {heads} attention heads; this model runs on any number of ranks up to {heads}"
    for call in (lambda: check_ranks(heads, size), lambda: share_heads(heads, heads, size)):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            call()
    check_ranks(heads, heads)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(14, 2, 4), (8, 8, 3), (8, 2, 3), (8, 8, 7)])
def test_what_a_rank_lacks_is_zeros(heads: int, kv_heads: int, size: int) -> None:
    """All ranks have the same shapes; what no part fills is zeros, in the bias as well."""
    shapes = set()
    for rank in range(size):
        build = build_of(torch.float32, rank, size)
        attention = Attention(build, 16, heads, kv_heads, 4, qkv_bias=True, o_bias=False)
        for name, filling in fillings(attention).items():
            for role, part in filling.parts.items():
                values = part_of(attention, name, role)
                assert tuple(values.shape) == part.sizes
                values.fill_(1.0)
        qkv, o = attention.qkv, attention.o
        assert qkv.bias is not None
        shapes.add((qkv.weight.shape, qkv.bias.shape, o.weight.shape, attention.planes))
        queries = attention.heads * 4
        real = share_heads(heads, kv_heads, size).queries(rank)
        kept = (real.stop - real.start) * 4
        for rows in (qkv.weight[:queries], qkv.bias[:queries], o.weight.t()):
            assert (rows[:kept] == 1).all() and (rows[kept:] == 0).all()
        keys = share_heads(heads, kv_heads, size).keys(rank)
        kept = (keys.stop - keys.start) * 4
        for rows in (qkv.weight[queries:], qkv.bias[queries:]):
            for half in rows.chunk(2):
                assert (half[:kept] == 1).all() and (half[kept:] == 0).all()
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "head_dim", "unit"),
    [
        (14, 2, 4, 24, 8),  # 4 and 3 heads: one begins at 4 * 24, the next at 7 * 24
        (8, 8, 3, 4, 16),  # 4 heads each, not 3, for units of 4
        (8, 8, 3, 10, 8),
        (14, 2, 4, 64, 64),
        (12, 2, 4, 24, 8),  # 3 heads each
        (28, 4, 3, 64, 128),  # 14 heads each
        (32, 32, 3, 128, 128),
        (8, 8, 4, 64, 128),  # as without zero heads
    ],
)
def test_groups_of_o_are_cut_at_borders_of_heads(
    heads: int, kv_heads: int, size: int, head_dim: int, unit: int
) -> None:
    """With groups of 128 inputs; no scale is for inputs of two ranks, and all ranks have as many."""
    quantization = Quantization("w4a16", Storage(4, group=128))
    for rank in range(size):
        build = build_of(torch.float32, rank, size, device="meta", quantization=quantization)
        attention = Attention(build, 32, heads, kv_heads, head_dim, qkv_bias=False, o_bias=False)
        filling = fillings(attention)["o.weight"]
        (part,), layout = filling.parts.values(), filling.weight.layout
        assert layout.unit == unit and layout.scales == (32, layout.shape[1] // unit)
        assert part.start % unit == 0 or part.start == part.stop
        (of_scales,) = filling.beside["scale"].parts.values()
        assert of_scales.shape == (32, -(-heads * head_dim // unit))
        assert (of_scales.start, of_scales.stop) == (-(-part.start // unit), -(-part.stop // unit))


@pytest.mark.parametrize(
    ("width", "size", "wanted"),
    [
        (1408, 1, 1408),
        (1408, 8, 176),  # divides: as it is, with 16 inputs to a scale
        (1408, 3, 480),  # not 472, of which only 8 inputs share a scale
        (1408, 5, 288),
        (1728, 7, 256),
        (10944, 5, 2240),
    ],
)
def test_a_width_that_leaves_zeros_anyway_is_cut_where_many_inputs_share_a_scale(
    width: int, size: int, wanted: int
) -> None:
    def build(storage: Storage | None) -> Build:
        stored = None if storage is None else Quantization("x", storage)
        return Build(torch.float32, torch.device("meta"), ParallelGroup(0, size), quantization=stored)

    assert build(Storage(4, group=128)).share_width(width, "down").width == wanted
    assert build(Storage(4)).share_width(width, "down").width == -(-width // (8 * size)) * 8
    assert build(Storage(8)).share_width(width, "down").width == -(-width // size)
    assert build(None).share_width(width, "down").width == -(-width // size)
