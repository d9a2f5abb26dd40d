"""Cost rules against counts made by hand and against torch's own FLOP counter."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atb_models import ops
from atb_models.graph.meta import MetaGroup
from atb_models.ops.cost import Cost
from atb_models.ops.gating import Gating
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.sublayers import AttentionSublayer, FeedForwardSublayer, MlpWeights, Norm, RoutedWeights
from atb_models.ops.table import TABLE
from atb_models.ops.weight import Layout, Weight
from tests.records import attention_step, kv_cache, shape_rule, slots_step

HALF, SINGLE, INT, LONG = torch.float16, torch.float32, torch.int32, torch.int64


def meta(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def priced(name: str, *args: Any) -> Cost:
    """The cost of a call whose result the shape rule makes."""
    op = TABLE[name]
    return op.cost(shape_rule(op)(*args), *args)


def integers(*shape: int) -> Weight:
    """A weight for int8 activations whose scales are made at run time."""
    layout = Layout.integers(shape, activations="token")
    assert layout.scales is not None
    return Weight(layout, meta(*shape, dtype=torch.int8), meta(*layout.scales, dtype=SINGLE))


X, KV = meta(3, 4), meta(3, 1, 4)  # 24 bytes each
X8, W8 = meta(3, 4, dtype=torch.int8), integers(5, 4)
X6 = torch.zeros(6, 4).half()  # with values: the experts that have rows are counted
CACHE = kv_cache(meta(9, 4, 1, 4), meta(9, 4, 1, 4))
LATENTS = LayerCache(latent=meta(9, 4, 5), rope_key=meta(9, 4, 2))

NORM, TABLES = Norm(meta(4), 1e-6), (meta(3, 2, dtype=SINGLE), meta(3, 2, dtype=SINGLE))
# 2 heads and a KV head of 4: 16 rows and biases of queries, keys and values
ATTENTION = AttentionSublayer(NORM, Weight.plain(meta(16, 4)), meta(16), Weight.plain(meta(4, 8)), None, 2, 1, 4)
ATTENDED = attention_step([3], [5], meta(1, 2, dtype=INT), meta(3, dtype=INT))
MLP = MlpWeights(Weight.plain(meta(6, 4)), Weight.plain(meta(4, 3)))
ROUTED = RoutedWeights(
    Weight.plain(meta(4, 4, dtype=SINGLE)), None, Gating(2), Weight.plain(meta(4, 6, 4)), Weight.plain(meta(4, 4, 3)),
    meta(1, 4),
)  # fmt: skip

# Name, arguments, FLOPs, bytes read, bytes written: all worked out on paper.
BY_HAND: list[tuple[str, tuple[Any, ...], float, float, float]] = [
    ("Embedding", (meta(3, dtype=INT), meta(10, 4)), 0, 12 + 24, 24),
    ("SelectRows", (meta(5, 4), meta(2, dtype=INT)), 0, 8 + 16, 16),
    ("RmsNorm", (X, meta(4), 1e-6), 48, 24 + 8, 24),
    ("AddRmsNorm", (X, X, meta(4), 1e-6), 60, 24 + 24 + 8, 24 + 24),
    # 2 heads of 4 and a KV head; the sums are 4 bytes each, and one column of them is read
    ("SquareSums", (meta(3, 2, 4), KV), 2 * 36, 48 + 24, 24),
    ("SquareSums", (meta(3, 2, 4), None), 2 * 24, 48, 24),
    ("NormBySums", (meta(3, 2, 4), meta(3, 2, dtype=SINGLE), 0, 16, meta(8), 1e-6), 2 * 24, 48 + 12 + 16, 48),
    ("Clip", (X, 8.0), 0, 24, 24),
    ("Linear", (X, Weight.plain(meta(5, 4))), 120, 24 + 40, 30),
    ("Linear", (X, Weight.plain(meta(5, 4)), meta(5)), 135, 24 + 40 + 10, 30),
    ("SwiGlu", (meta(3, 8),), 60, 48, 24),
    ("Add", (X, X), 12, 48, 24),
    ("ToFloat", (X,), 0, 24, 48),
    ("ToFloat", (meta(3, 6, dtype=SINGLE)[:, :4],), 0, 48, 48),
    ("ToFloat", (meta(3, 4, dtype=SINGLE),), 0, 0, 0),
    ("TopLogits", (X, 2, 7), 0, 24, 3 * 3 * 8),  # 2 keys and a count of each row
    ("RopeTables", (meta(3, dtype=INT), meta(2, dtype=SINGLE), 1.0), 18, 12 + 8, 24 + 24),
    ("Rope", (meta(3, 2, 4), KV, meta(3, 2, dtype=SINGLE), meta(3, 2, dtype=SINGLE)), 108, 48 + 24 + 24 + 24, 48 + 24),
    ("ReshapeAndCache", (KV, KV, CACHE, slots_step(meta(3, dtype=INT))), 0, 24 + 24 + 12, 24 + 24),
    ("RopeAndCache", (meta(3, 2, 4), KV, KV, meta(3, 2, dtype=SINGLE), meta(3, 2, dtype=SINGLE), CACHE,
        slots_step(meta(3, dtype=INT))), 108, 48 + 24 + 24 + 24 + 24 + 12, 48 + 24 + 24),
    # pairs of a query and a key: 5 of the first sequence, 2 + 3 + 4 of the second, each 16 FLOPs in each of 2 heads;
    # 9 cached tokens with 8 bytes of K and of V, in 2 blocks and 1 of 4 tokens, each a number of 4 bytes
    (
        "PagedAttention",
        (meta(4, 2, 4), CACHE, attention_step([1, 3], [5, 4], meta(2, 5, dtype=INT)), 0.5),
        14 * 16 * 2,
        64 + 9 * 16 + 3 * 4,
        64,
    ),
    ("LatentCache", (meta(3, 5), meta(3, 2), LATENTS, slots_step(meta(3, dtype=INT))), 0, 30 + 12 + 12, 30 + 12),
    # of each of 2 heads' 4 values 2 turn, and those of the key
    ("RopeAndLatentCache", (meta(3, 2, 4), meta(3, 5), meta(3, 2), meta(3, 1, dtype=SINGLE), meta(3, 1, dtype=SINGLE),
        LATENTS, slots_step(meta(3, dtype=INT))), 36 + 18, 48 + 30 + 12 + 12 + 12 + 12, 48 + 30 + 12),
    # 2 heads with a key and two values of 5 inputs each: 60 FLOPs to map a vector. The first query maps itself and its
    # result, and meets 5 keys of 7 and values of 5: 60 + 5 * 48. Those of the second sequence meet 9 expanded keys of 3
    # and values of 2, which 4 tokens are mapped to: 4 * 60 + 9 * 20. 9 cached tokens with 14 bytes, 3 blocks.
    (
        "LatentAttention",
        (meta(4, 2, 3), meta(6, 5), LATENTS, attention_step([1, 3], [5, 4], meta(2, 5, dtype=INT)), 0.5),
        300 + 420,
        48 + 60 + 9 * 14 + 3 * 4,
        32,
    ),
    ("Router", (X, Weight.plain(meta(5, 4, dtype=SINGLE))), 120, 24 + 80, 60),
    ("MoeGating", (meta(3, 5, dtype=SINGLE), Gating(2)), 60, 60, 24 + 48),
    ("MoeGating", (meta(3, 5, dtype=SINGLE), Gating(2, renormalize_eps=1e-20)), 72, 60, 24 + 48),
    ("MoeGating", (meta(3, 5, dtype=SINGLE), Gating(2, "sigmoid", scaling=2.5), meta(5, dtype=SINGLE)),
        45 + 15 + 6, 60 + 20, 24 + 48),
    ("MoeInitRouting", (X, meta(3, 2, dtype=LONG), 5), 0, 24 + 48, 48 + 48 + 40),
    # 3 tokens of 2 experts each: an expert of the 4 is missed with probability 1 / 8, so 3.5 of 40 bytes are read
    ("GroupedMatmul", (meta(6, 4), Weight.plain(meta(4, 5, 4)), meta(4, dtype=LONG), 2), 240, 48 + 32 + 140, 60),
    ("GroupedMatmul", (X6, Weight.plain(torch.zeros(4, 5, 4).half()), torch.tensor([2, 0, 4, 0]), 2),
        240, 48 + 32 + 80, 60),
    # 6 rows of 4 inputs through experts of width 3; 3.5 of the 4 experts, of 24 + 12 halves each
    ("MoeExperts", (X, Weight.plain(meta(4, 6, 4)), Weight.plain(meta(4, 4, 3)), meta(3, 2, dtype=SINGLE),
        meta(3, 2, dtype=LONG)), 6 * (72 + 15 + 8), 24 + 24 + 48 + 252, 24),
    # with values: 2 of the 4 experts are read; and each expert's tokens are added to a counter
    ("MoeExperts", (torch.zeros(3, 4).half(), Weight.plain(torch.zeros(4, 6, 4).half()),
        Weight.plain(torch.zeros(4, 4, 3).half()), torch.zeros(3, 2), torch.tensor([[0, 2], [2, 0], [0, 2]]),
        torch.zeros(4, dtype=LONG)), 6 * (72 + 15 + 8) + 4, 24 + 24 + 48 + 32 + 144, 24 + 32),
    ("MoeFinalizeRouting", (meta(6, 4), meta(3, 2, dtype=LONG), meta(3, 2, dtype=SINGLE)), 48, 48 + 48 + 24, 24),
    ("SharedExpertGate", (X, X, meta(1, 4)), 24 + 12, 24 + 24 + 8, 24),
    # an int8 and a scale of 4 bytes for each row; 4 bytes for the offset too where it is static
    ("Quantize", (X,), 12, 24, 12 + 12),
    ("QuantizeStatic", (X, meta(1, dtype=SINGLE), meta(1, dtype=SINGLE)), 24, 24 + 8, 12),
    ("QuantizeStatic", (meta(6, 4), meta(5, 1, dtype=SINGLE), meta(5, 1, dtype=SINGLE), meta(5, dtype=LONG)),
        48, 48 + 20 + 20 + 40, 24),
    # a byte for each weight, 4 for the scale of each output
    ("QuantMatmul", (X8, meta(3, dtype=SINGLE), W8, meta(5), torch.float16), 120 + 15, 12 + 12 + 20 + 20 + 10, 30),
    ("QuantMatmul", (X8, None, W8, None, torch.float16), 120, 12 + 20 + 20, 30),
    ("QuantLinear", (X, W8, meta(5)), 12 + 120 + 15, 24 + 20 + 20 + 10, 30),
    ("QuantLinear", (X, W8, None), 12 + 120, 24 + 20 + 20, 30),
    # 3.5 of the 4 experts, of 20 bytes and 5 scales each
    ("QuantGroupedMatmul", (meta(6, 4, dtype=torch.int8), meta(6, dtype=SINGLE), integers(4, 5, 4), meta(4, dtype=LONG),
        2, torch.float16), 240, 24 + 24 + 32 + 140, 60),
    ("MoeRouteScales", (meta(3, dtype=SINGLE), meta(3, 2, dtype=LONG)), 0, 12 + 48, 24),
    # 24 + 24 and 12 + 16 bytes of each expert; 3 x 4 and 6 x 3 numbers are made int8
    ("QuantMoeExperts", (X, integers(4, 6, 4), integers(4, 4, 3), meta(3, 2, dtype=SINGLE), meta(3, 2, dtype=LONG)),
        6 * (72 + 15 + 8) + 12 + 18, 24 + 24 + 48 + 3.5 * 76, 24),
    # the norm of the sum; queries, keys and values with biases; rotation; 12 pairs in each of 2 heads; the output.
    # read: the stream, the norm, qkv and its biases, tables, slots, 5 cached tokens in 2 blocks, the output's weight
    ("AttentionSublayer", (X, X, ATTENTION, *TABLES, CACHE, ATTENDED), 60 + 384 + 48 + 108 + 12 * 16 * 2 + 192,
        48 + 8 + 128 + 32 + 48 + 12 + 80 + 8 + 64, 48 + 48),
    # the first layer's, without a sum
    ("AttentionSublayer", (None, X, ATTENTION, *TABLES, CACHE, ATTENDED), 48 + 384 + 48 + 108 + 12 * 16 * 2 + 192,
        24 + 8 + 128 + 32 + 48 + 12 + 80 + 8 + 64, 24 + 48),
    ("FeedForwardSublayer", (X, X, FeedForwardSublayer(NORM, MLP, None)), 60 + 3 * 87, 48 + 8 + 72, 48),
    # shared experts with a gate, the router's scores, the choice, 6 rows of experts, a counter, the sum; 3.5 of the 4
    # experts are read
    ("FeedForwardSublayer", (X, X, FeedForwardSublayer(NORM, MLP, ROUTED), meta(4, dtype=LONG)),
        60 + 3 * 87 + 36 + 96 + 48 + 6 * 95 + 4 + 12, 48 + 8 + 72 + 8 + 64 + 252 + 32, 48 + 32),
    ("FeedForwardSublayer", (X, X, FeedForwardSublayer(NORM, None, ROUTED)),
        60 + 36 + 96 + 48 + 6 * 95, 48 + 8 + 8 + 64 + 252, 48),
    ("CountExpertTokens", (meta(5, dtype=LONG), meta(5, dtype=LONG)), 5, 80, 40),
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "flops", "read", "written"), BY_HAND)
def test_counts_made_by_hand(name: str, args: tuple[Any, ...], flops: float, read: float, written: float) -> None:
    assert priced(name, *args) == Cost(flops, read, written)


@pytest.mark.parametrize(("size", "flops", "sent"), [(1, 0, 0), (2, 12, 48), (4, 18, 72), (8, 21, 84)])
def test_ring_all_reduce(size: int, flops: float, sent: float) -> None:
    """24 numbers of 2 bytes, in `size` parts: a rank adds and sends size - 1 of them, then sends as many sums."""
    assert priced("AllReduce", meta(4, 6), MetaGroup(0, size)) == Cost(flops, 48, 48, sent)


@pytest.mark.parametrize(("size", "written", "sent"), [(1, 48, 0), (2, 96, 48), (4, 192, 144), (8, 384, 336)])
def test_ring_all_gather(size: int, written: float, sent: float) -> None:
    assert priced("AllGather", meta(4, 6), MetaGroup(0, size)) == Cost(0, 48, written, sent)


def test_every_operation_is_counted_by_hand() -> None:
    shown = {op.name for op in TABLE.values() if op.is_shown}
    assert {name for name, *_ in BY_HAND} | {"AllReduce", "AllGather"} == shown


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3, 4) + Cost(5, 6, 7, 8) * 2 == Cost(11, 14, 17, 20)
    assert Cost(1, 2, 3, 4).moved == 5


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(16, 4, 1), (16, 4, 5), (64, 6, 16), (60, 4, 40), (8, 8, 3)])
def test_expected_experts_are_the_mean_of_real_routings(experts: int, top_k: int, tokens: int) -> None:
    draw, op, rows = random.Random(0), TABLE["GroupedMatmul"], tokens * top_k
    x, weight = torch.zeros(rows, 4), Weight.plain(torch.zeros(experts, 6, 4))
    fixed = x.nbytes + experts * 8
    expected = op.cost(meta(rows, 6), x, weight, meta(experts, dtype=LONG), top_k).read - fixed
    read = 0.0
    for _ in range(1000):
        chosen = [expert for _ in range(tokens) for expert in draw.sample(range(experts), top_k)]
        counts = torch.bincount(torch.tensor(chosen), minlength=experts)
        real = op.cost(meta(rows, 6), x, weight, counts, top_k).read - fixed
        assert real == len(set(chosen)) * 6 * 4 * 4
        read += real / 1000
    assert read == pytest.approx(expected, rel=0.01)


def counted(call: Callable[[], object]) -> int:
    """FLOPs by torch's counter. Attention in its unfused form, of which the counter knows the products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_products_have_the_flops_that_torch_counts() -> None:
    x, weight, router = meta(7, 12), Weight.plain(meta(20, 12)), Weight.plain(meta(9, 12, dtype=SINGLE))
    assert counted(lambda: ops.linear.reference(x, weight)) == priced("Linear", x, weight).flops > 0
    assert counted(lambda: ops.router.reference(x, router)) == priced("Router", x, router).flops > 0
    experts = torch.zeros(8, 12), Weight.plain(torch.zeros(5, 20, 12)), torch.tensor([3, 0, 4, 1, 0]), 2
    assert counted(lambda: ops.grouped_matmul.reference(*experts)) == priced("GroupedMatmul", *experts).flops > 0


def attention(heads: int, kv_heads: int, query_lens: list[int], kv_lens: list[int]) -> tuple[Any, ...]:
    """Arguments of PagedAttention with block size 16 and head dimension 8."""
    columns = max(-(-n // 16) for n in kv_lens)
    table = torch.arange(len(kv_lens) * columns, dtype=INT).view(len(kv_lens), columns)
    cache = torch.zeros(table.numel(), 16, kv_heads, 8)
    step = attention_step(query_lens, kv_lens, table)
    return torch.zeros(sum(query_lens), heads, 8), kv_cache(cache, cache), step, 1.0


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_of_single_queries_has_the_flops_that_torch_counts(heads: int, kv_heads: int) -> None:
    args = attention(heads, kv_heads, [1] * 5, [33] * 5)
    assert counted(lambda: ops.paged_attention.reference(*args)) == priced("PagedAttention", *args).flops > 0


@pytest.mark.parametrize(
    ("query_lens", "kv_lens"), [([7], [7]), ([7], [40]), ([300, 1, 5], [300, 20, 33]), ([1, 1], [3, 9])]
)
def test_attention_counts_only_pairs_that_see_each_other(query_lens: list[int], kv_lens: list[int]) -> None:
    pairs = 0
    for count, length in zip(query_lens, kv_lens, strict=True):
        pairs += sum(key <= query for query in range(length - count, length) for key in range(length))
    args = attention(4, 2, query_lens, kv_lens)
    ours = priced("PagedAttention", *args).flops
    assert ours == pairs * 4 * (2 * 8 + 2 * 8)
    assert ours <= counted(lambda: ops.paged_attention.reference(*args))
