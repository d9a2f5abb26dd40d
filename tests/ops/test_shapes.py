"""On random shapes the shape rule, the reference body and the CPU backend agree, and so do the costs by each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from atb_models.graph.meta import MetaGroup
from atb_models.ops import cpu, cpu_torch
from atb_models.ops.gating import Gating
from atb_models.ops.sublayers import AttentionSublayer, FeedForwardSublayer, MlpWeights, Norm, RoutedWeights
from atb_models.ops.table import TABLE, Op
from atb_models.ops.weight import Weight
from tests.ops.draws import Draw, EqualRanks, latent_attention, latent_cached, latent_rotated
from tests.records import attention_step, kv_cache, map_tensors, shape_rule, slots_step

DRAWS = 10
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cached(d: Draw) -> tuple[Any, ...]:
    slots = torch.randperm(d.T + 30, generator=d.torch)[: d.T].int()
    blocks = -(-(d.T + 30) // d.S)
    return d.floats(d.T, d.M, d.D), d.floats(d.T, d.M, d.D), d.cache(blocks), slots_step(slots)


def rotated(d: Draw) -> tuple[Any, ...]:
    k, v, cache, step = cached(d)
    return d.floats(d.T, d.N, d.D), k, v, d.single(d.T, d.D // 2), d.single(d.T, d.D // 2), cache, step


def attention(d: Draw) -> tuple[Any, ...]:
    kv_lens = [d.to(1, 40) for _ in range(d.to(1, 5))]
    query_lens = [d.random.choice((1, d.to(1, n))) for n in kv_lens]
    table = d.integers(30, len(kv_lens), -(-max(kv_lens) // d.S) + d.to(0, 2))
    return d.floats(sum(query_lens), d.N, d.D), d.cache(30), attention_step(query_lens, kv_lens, table), d.D**-0.5


def attention_sublayer(d: Draw) -> tuple[Any, ...]:
    kv_lens = [d.to(1, 20) for _ in range(d.to(1, 4))]
    query_lens = [d.random.choice((1, d.to(1, n))) for n in kv_lens]
    tokens, blocks = sum(query_lens), 30
    table = d.integers(blocks, len(kv_lens), -(-max(kv_lens) // d.S) + d.to(0, 2))
    slots = torch.randperm(blocks * d.S, generator=d.torch)[:tokens].int()
    rows, width = (d.N + 2 * d.M) * d.D, d.N * d.D
    norms = d.random.choice(((), (Norm(d.floats(d.D), 1e-6), Norm(d.floats(d.D), 1e-5))))
    sublayer = AttentionSublayer(
        Norm(d.floats(d.H), 1e-6), d.weight(rows, d.H), d.random.choice((None, d.floats(rows))),
        d.weight(d.H, width), d.random.choice((None, d.floats(d.H))), d.N, d.M, d.D,
        *norms,
    )  # fmt: skip
    x = d.random.choice((None, d.floats(tokens, d.H)))
    angles = d.single(tokens, d.D // 2), d.single(tokens, d.D // 2)
    step = attention_step(query_lens, kv_lens, table, slots)
    return x, d.floats(tokens, d.H), sublayer, *angles, d.cache(blocks), step


def feed_forward_sublayer(d: Draw) -> tuple[Any, ...]:
    mlp = MlpWeights(d.weight(2 * d.V, d.H), d.weight(d.H, d.V))
    routed = RoutedWeights(
        Weight.plain(d.single(d.E, d.H)), d.random.choice((None, d.single(d.E))), Gating(d.K),
        d.weight(d.E, 2 * d.V, d.H), d.weight(d.E, d.H, d.V), d.random.choice((None, d.floats(1, d.H))),
    )  # fmt: skip
    norm, rows = Norm(d.floats(d.H), 1e-6), (d.floats(d.T, d.H), d.floats(d.T, d.H))
    kinds = ((mlp, None), (mlp, routed), (None, replace(routed, shared_gate_1H=None)))
    sublayer = FeedForwardSublayer(norm, *d.random.choice(kinds))
    counter = None if sublayer.routed is None else d.random.choice((None, d.integers(90, d.E).long()))
    return *rows, sublayer, counter


def grouped(d: Draw) -> tuple[Any, ...]:
    counts = torch.bincount(d.choices().flatten(), minlength=d.E)
    return d.floats(d.T * d.K, d.H), d.weight(d.E, d.V, d.H), counts, d.K


def quant_grouped(d: Draw) -> tuple[Any, ...]:
    counts, rows = torch.bincount(d.choices().flatten(), minlength=d.E), d.T * d.K
    scale = d.random.choice((None, d.single(rows)))
    return d.int8(rows, d.H), scale, d.quantized(d.E, d.V, d.H), counts, d.K, d.dtype


def static(d: Draw) -> tuple[Any, ...]:
    """One scale for all rows, or one for those of each expert."""
    counts = d.random.choice((None, torch.bincount(d.choices().flatten(), minlength=d.E)))
    of = (1,) if counts is None else (d.E, 1)
    return d.floats(d.T * d.K, d.H), d.single(*of).abs() + 0.1, d.single(*of), counts


def finalize(d: Draw) -> tuple[Any, ...]:
    rows = torch.randperm(d.T * d.K, generator=d.torch).view(d.T, d.K)
    return d.floats(d.T * d.K, d.H), rows, d.single(d.T, d.K)


CASES: dict[str, Callable[[Draw], tuple[Any, ...]]] = {
    "Embedding": lambda d: (d.integers(d.V, d.T), d.floats(d.V, d.H)),
    "RmsNorm": lambda d: (d.floats(d.T, d.H), d.floats(d.H), 1e-6),
    "AddRmsNorm": lambda d: (d.floats(d.T, d.H), d.floats(d.T, d.H), d.floats(d.H), 1e-6),
    "SquareSums": lambda d: (d.floats(d.T, d.N, d.D), d.random.choice((None, d.floats(d.T, d.M, d.D)))),
    "NormBySums": lambda d: (
        d.floats(d.T, d.N, d.D), d.single(d.T, 2).abs(), d.to(0, 1), 2 * d.N * d.D, d.floats(d.N * d.D), 1e-6
    ),
    "Clip": lambda d: (d.floats(d.T, d.H), 0.5),
    "Linear": lambda d: (d.floats(d.T, d.H), d.weight(d.V, d.H), d.random.choice((None, d.floats(d.V)))),
    "SwiGlu": lambda d: (d.floats(d.T, 2 * d.H),),
    "Add": lambda d: (d.floats(d.T, d.H), d.floats(d.T, d.H)),
    "SelectRows": lambda d: (d.floats(d.T, d.H), d.integers(d.T, d.to(1, 5))),
    "ToFloat": lambda d: (d.floats(d.T, d.V)[:, : d.to(1, d.V)],),
    "TopLogits": lambda d: (d.floats(d.T, d.V)[:, : d.to(0, d.V)], d.to(1, 40), d.to(0, 5000)),
    "RopeTables": lambda d: (d.integers(5000, d.T), d.single(d.D // 2), 1.5),
    "Rope": lambda d: (
        d.floats(d.T, d.N, d.D), d.floats(d.T, d.M, d.D), d.single(d.T, d.D // 2), d.single(d.T, d.D // 2)
    ),
    "ReshapeAndCache": cached,
    "RopeAndCache": rotated,
    "PagedAttention": attention,
    "LatentCache": latent_cached,
    "RopeAndLatentCache": latent_rotated,
    "LatentAttention": latent_attention,
    "Router": lambda d: (d.floats(d.T, d.H), Weight.plain(d.single(d.E, d.H))),
    "MoeGating": lambda d: (
        d.single(d.T, d.E),
        Gating(d.K, d.random.choice(("softmax", "sigmoid")), renormalize_eps=d.random.choice((None, 1e-20))),
        d.random.choice((None, d.single(d.E))),
    ),
    "MoeInitRouting": lambda d: (d.floats(d.T, d.H), d.choices(), d.E),
    "GroupedMatmul": grouped,
    "MoeExperts": lambda d: (
        d.floats(d.T, d.H), d.weight(d.E, 2 * d.V, d.H), d.weight(d.E, d.H, d.V), d.single(d.T, d.K), d.choices(),
        d.random.choice((None, d.integers(90, d.E).long())),
    ),
    "MoeFinalizeRouting": finalize,
    "AttentionSublayer": attention_sublayer,
    "FeedForwardSublayer": feed_forward_sublayer,
    "SharedExpertGate": lambda d: (d.floats(d.T, d.H), d.floats(d.T, d.H), d.floats(1, d.H)),
    "Quantize": lambda d: (d.floats(d.T, d.H),),
    "QuantizeStatic": static,
    "QuantMatmul": lambda d: (
        d.int8(d.T, d.H), d.random.choice((None, d.single(d.T))), d.quantized(d.V, d.H),
        d.random.choice((None, d.floats(d.V))), d.dtype,
    ),
    "QuantLinear": lambda d: (
        d.floats(d.T, d.H), d.quantized(d.V, d.H), d.random.choice((None, d.floats(d.V))),
    ),
    "QuantGroupedMatmul": quant_grouped,
    "MoeRouteScales": lambda d: (d.single(d.T), torch.randperm(d.T * d.K, generator=d.torch).view(d.T, d.K)),
    "QuantMoeExperts": lambda d: (
        d.floats(d.T, d.H), d.quantized(d.E, 2 * d.V, d.H), d.quantized(d.E, d.H, d.V), d.single(d.T, d.K), d.choices(),
        d.random.choice((None, d.integers(90, d.E).long())),
    ),
    "CountExpertTokens": lambda d: (d.integers(90, d.E).long(), d.integers(9, d.E).long()),
    "AllReduce": lambda d: (d.floats(d.T, d.H), d.group()),
    "AllGather": lambda d: (d.floats(d.T, d.H), d.group()),
}  # fmt: skip

# A case with one inner dimension that does not go with the others: which argument, and what it becomes.
BROKEN: dict[str, tuple[int, Callable[[Draw], Any]]] = {
    "RmsNorm": (1, lambda d: d.floats(d.H + 1)),
    "AddRmsNorm": (1, lambda d: d.floats(d.T, d.H + 1)),
    "SquareSums": (1, lambda d: d.floats(d.T + 1, d.M, d.D)),
    "NormBySums": (4, lambda d: d.floats(d.N * d.D + 1)),
    "Linear": (1, lambda d: d.weight(d.V, d.H + 1)),
    "SwiGlu": (0, lambda d: d.floats(d.T, 2 * d.H + 1)),
    "Add": (1, lambda d: d.floats(d.T, d.H + 1)),
    "Rope": (2, lambda d: d.single(d.T, d.D // 2 + 1)),
    "ReshapeAndCache": (1, lambda d: d.floats(d.T, 2 * d.M, d.D)),
    "RopeAndCache": (4, lambda d: d.single(d.T, d.D // 2 + 1)),
    "PagedAttention": (1, lambda d: kv_cache(d.floats(30, d.S, d.M, d.D), d.floats(30, d.S, d.M, d.D + 2))),
    "LatentCache": (0, lambda d: d.floats(d.T, d.V + 1)),
    "RopeAndLatentCache": (3, lambda d: d.single(d.T, d.D // 2 + 1)),
    "LatentAttention": (1, lambda d: d.floats(d.N * (d.K + d.E), d.V + 1)),
    "Router": (1, lambda d: Weight.plain(d.single(d.E, d.H + 1))),
    "MoeGating": (1, lambda d: Gating(d.E + 1)),
    "GroupedMatmul": (1, lambda d: d.weight(d.E, d.V, d.H + 1)),
    "MoeExperts": (2, lambda d: d.weight(d.E, d.H, d.V + 1)),
    "MoeFinalizeRouting": (2, lambda d: d.single(d.T, d.K + 1)),
    "SharedExpertGate": (2, lambda d: d.floats(1, d.H + 1)),
    "QuantizeStatic": (1, lambda d: d.single(d.T * d.K + d.H + 1)),
    "QuantMatmul": (2, lambda d: d.quantized(d.V, d.H + 1)),
    "QuantLinear": (1, lambda d: d.quantized(d.V, d.H + 1)),
    "QuantGroupedMatmul": (2, lambda d: d.quantized(d.E, d.V, d.H + 1)),
    "MoeRouteScales": (0, lambda d: d.single(d.T + 1)),
    "QuantMoeExperts": (2, lambda d: d.quantized(d.E, d.H, d.V + 1)),
    "AttentionSublayer": (1, lambda d: d.floats(d.T, d.H + 1)),
    "FeedForwardSublayer": (1, lambda d: d.floats(d.T, d.H + 1)),
    "CountExpertTokens": (1, lambda d: d.integers(9, d.E + 1).long()),
}
WITHOUT_INNER_DIMENSION = {
    "Quantize", "Embedding", "Clip", "SelectRows", "ToFloat", "TopLogits", "RopeTables", "MoeInitRouting", "AllReduce",
    "AllGather",
}  # fmt: skip


# The others run in parts on meta tensors.
SHOWN = {name: op for name, op in TABLE.items() if op.is_shown}

# Whose rule has the expected experts, and whose result those that were counted.
COUNTED = {"GroupedMatmul", "MoeExperts", "QuantGroupedMatmul", "QuantMoeExperts"}


def on_meta(arg: Any) -> Any:
    if isinstance(arg, EqualRanks):
        return MetaGroup(arg.rank, arg.size)
    return map_tensors(lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta"), arg)


def run(body: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A call that leaves the arguments as they are."""
    return body(*(map_tensors(Tensor.clone, arg) for arg in args))


def looks(result: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(x.shape, x.dtype) for x in tree_leaves(result) if isinstance(x, Tensor)]


def cases(op: Op, dtype: torch.dtype) -> Iterator[tuple[Draw, tuple[Any, ...]]]:
    for number in range(DRAWS):
        draw = Draw(f"{op.name} {dtype} {number}", dtype)
        yield draw, CASES[op.name](draw)


def bodies(op: Op) -> dict[str, Callable[..., Any]]:
    served = {"torch": cpu_torch.BACKEND.bodies, "cpu": cpu.backend().bodies}
    return {"reference": op.reference} | {who: bodies.get(op.name, op.reference) for who, bodies in served.items()}


def test_every_operation_has_a_case() -> None:
    assert CASES.keys() == SHOWN.keys()
    assert BROKEN.keys() | WITHOUT_INNER_DIMENSION == SHOWN.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SHOWN.values(), ids=SHOWN.keys())
def test_shape_rule_bodies_and_costs_agree(op: Op, dtype: torch.dtype) -> None:
    for _, args in cases(op, dtype):
        meta = tuple(map(on_meta, args))
        by_rule = shape_rule(op)(*meta)
        assert all(x.is_meta for x in tree_leaves(by_rule) if isinstance(x, Tensor))
        for who, body in bodies(op).items():
            result = run(body, args)
            assert looks(by_rule) == looks(result), (who, looks(args))
            if op.name not in COUNTED:
                assert op.cost(by_rule, *meta) == op.cost(result, *args), (who, looks(args))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BROKEN)
def test_dimensions_that_do_not_go_together_are_refused_by_the_rule_as_by_the_bodies(
    name: str, dtype: torch.dtype
) -> None:
    op, (place, wrong) = TABLE[name], BROKEN[name]
    for draw, args in cases(op, dtype):
        broken = (*args[:place], wrong(draw), *args[place + 1 :])
        meta = tuple(map(on_meta, broken))
        with pytest.raises((RuntimeError, ValueError)):
            shape_rule(op)(*meta)
        for body in bodies(op).values():
            with pytest.raises((RuntimeError, ValueError)):
                run(body, broken)


def test_experts_of_another_dtype_are_refused_by_the_rule_as_by_the_body() -> None:
    x, weight, counts, top_k = CASES["GroupedMatmul"](Draw("", torch.float16))
    op, wide = TABLE["GroupedMatmul"], Weight.plain(weight.rows.float())
    with pytest.raises(RuntimeError):
        op.reference(x, wide, counts, top_k)
    assert op.shape
    with pytest.raises(ValueError, match="float16 do not go with experts of torch.float32"):
        op.shape(*map(on_meta, (x, wide, counts, top_k)))
