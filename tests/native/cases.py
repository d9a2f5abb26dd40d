"""What the tests of the native operations share: the levels of this machine, and exact results."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from atb_models.ops.native import attention
from atb_models.ops.native.build import levels_of
from atb_models.ops.native.library import Library, cpu_flags
from atb_models.ops.native.packing import GateUpPanels, Panels
from atb_models.ops.weight import Layout, Packing, Weight

LEVELS = [level.name for machine in ("x86_64", "aarch64") for level in levels_of(machine) if level.needs <= cpu_flags()]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# Of the largest value: rounding the result, and float32 sums of a few thousand terms.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 8e-4, torch.bfloat16: 6e-3}


def assert_close(ours: Tensor, exact: Tensor, times: float = 1) -> None:
    assert ours.shape == exact.shape
    scale = max(exact.abs().max().item(), 1e-3)
    assert (ours.double() - exact).abs().max().item() <= times * TOLERANCE[ours.dtype] * scale


def attend(
    library: Library, q: Tensor, k: Tensor, v: Tensor, table: Tensor, queries: list[int], lengths: list[int]
) -> Tensor:
    starts = torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32)
    kv_lens = torch.tensor(lengths, dtype=torch.int32)
    return attention.paged_attention(library, q, k, v, table, starts, kv_lens, q.shape[-1] ** -0.5)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, queries: list[int], lengths: list[int]) -> Tensor:
    """In float64, one query after the other."""
    out, token = torch.empty(q.shape, dtype=torch.float64), 0
    for row, (count, length) in enumerate(zip(queries, lengths, strict=True)):
        keys, values = (c[table[row].long()].flatten(0, 1)[:length].double() for c in (k, v))
        group = q.shape[1] // keys.shape[1]
        for i in range(count):
            seen = length - count + i + 1
            for head in range(q.shape[1]):
                scores = keys[:seen, head // group] @ q[token, head].double() * q.shape[-1] ** -0.5
                out[token, head] = scores.softmax(0) @ values[:seen, head // group]
            token += 1
    return out


def exact_experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """In float64, expert by expert."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for k, expert in itertools.product(range(chosen.shape[1]), range(gate_up.shape[0])):
        rows = chosen[:, k] == expert
        gate, up = (x[rows].double() @ gate_up[expert].double().t()).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        out[rows] += weights[rows, k, None].double() * (inner @ down[expert].double().t())
    return out


def pack(library: Library, weight: Tensor) -> Tensor:
    """[O, I] or [E, O, I] as Linear and the down product take it."""
    return _packed(Panels(library), weight)


def pack_gate_up(library: Library, weight_EGH: Tensor) -> Tensor:
    return _packed(GateUpPanels(library), weight_EGH)


def _packed(packing: Packing, plain: Tensor) -> Tensor:
    """What the loader makes of the matrices, one after the other."""
    layout = packing.layout(Layout.plain(tuple(plain.shape), plain.dtype))
    assert layout.packing is packing and layout.loaded == layout.dtype == plain.dtype
    weight = Weight(layout, torch.empty(layout.stored, dtype=layout.dtype))
    if plain.dim() == 2:
        packing.pack(plain, weight, None)
    else:
        for unit, matrix in enumerate(plain):
            packing.pack(matrix, weight, unit)
    return weight.data
