"""Each operation against an independent computation in float64: loops over tokens, heads and experts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.ops import cpu, cpu_torch
from atb_models.ops.gating import Gating
from atb_models.ops.table import TABLE, bind
from atb_models.ops.weight import Weight
from tests.records import attention_step, kv_cache, slots_step

BACKENDS = ("reference", "torch", "cpu")  # torch: a CPU without the native library


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setenv("ATB_CPU_ISA", "reference")
    bind("cpu" if request.param == "torch" else request.param)
    return request.param


def close(ours: Tensor, exact: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == exact.shape
    assert (ours.double() - exact.double()).abs().max() <= tolerance * max(1.0, exact.abs().max().item())


def test_bind_says_who_serves_an_operation(backend: str) -> None:
    served = {operation.name: operation.backend for operation in ops.operations()}
    expected = set() if backend == "reference" else set(cpu.backend().bodies)
    assert {name for name, by in served.items() if by != "reference"} == expected
    assert all(operation.__doc__ for operation in TABLE.values())


def test_norms() -> None:
    x, residual, weight = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32)
    total = (x + residual).double()
    exact = torch.stack([row / math.sqrt((row @ row).item() / 32 + 1e-6) for row in total]) * weight.double()
    normed, summed = ops.add_rms_norm(x, residual, weight, 1e-6)
    close(normed, exact)
    close(summed, total)
    close(ops.rms_norm(x + residual, weight, 1e-6), exact)


@pytest.mark.parametrize("rows", [1, 7, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear(rows: int, dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((rows, 48), (80, 48), (80,)))
    exact = x.double() @ weight.double().t() + bias.double()
    ours = ops.linear(x, Weight.plain(weight), bias)
    close(ours, exact, {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype])


def test_linear_in_bands_of_a_large_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_torch, "WIDEN_ELEMENTS", 100)
    x, weight, bias = torch.randn(9, 16).half(), torch.randn(37, 16).half(), torch.randn(37).half()
    close(ops.linear(x, Weight.plain(weight), bias), x.double() @ weight.double().t() + bias.double(), 1e-3)


def test_swiglu() -> None:
    x = torch.randn(3, 10)
    gate, up = x.double()[:, :5], x.double()[:, 5:]
    close(ops.swiglu(x), gate / (1 + torch.exp(-gate)) * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_over_the_heads_of_two_ranks(dtype: torch.dtype) -> None:
    """Each has half of the queries and the same keys, which one of them counts."""
    q, k = torch.randn(5, 4, 8).to(dtype), torch.randn(5, 1, 8).to(dtype)
    weight_q, weight_k = torch.randn(32).to(dtype), torch.randn(8).to(dtype)
    sums = ops.square_sums(q[:, :2], k) + ops.square_sums(q[:, 2:], None)
    halves = zip(q.split(2, dim=1), weight_q.split(16), strict=True)
    normed_q = torch.cat([ops.norm_by_sums(x, sums, 0, 32, weight, 1e-5) for x, weight in halves], dim=1)
    normed_k = ops.norm_by_sums(k, sums, 1, 8, weight_k, 1e-5)
    for x, weight, normed in ((q, weight_q, normed_q), (k, weight_k, normed_k)):
        exact = x.double().flatten(1)
        exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
        assert normed.dtype == dtype
        close(normed.flatten(1), exact, 1e-5 if dtype == torch.float32 else 1e-2)


def test_clip() -> None:
    assert ops.clip(torch.tensor([-9.0, -1.0, 0.5, 3.0]), 2.0).tolist() == [-2.0, -1.0, 0.5, 2.0]


def test_rope_is_a_rotation_in_the_complex_plane() -> None:
    q, k = torch.randn(6, 4, 16), torch.randn(6, 2, 16)
    inv_freq = 1.0 / 10000 ** (torch.arange(0, 16, 2) / 16)
    positions = torch.tensor([0, 1, 5, 100, 4095, 8191], dtype=torch.int32)
    for x, rotated in zip((q, k), ops.rope(q, k, *ops.rope_tables(positions, inv_freq, 1.0)), strict=True):
        angle = positions.double()[:, None, None] * inv_freq.double()
        exact = torch.complex(x.double()[..., :8], x.double()[..., 8:]) * torch.polar(torch.ones_like(angle), angle)
        close(rotated, torch.cat((exact.real, exact.imag), dim=-1), 2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("top_k", "eps"), [(2, None), (4, 1e-20), (4, 1e-6)])
def test_moe_layer(dtype: torch.dtype, top_k: int, eps: float | None) -> None:
    tokens, hidden, width, experts = 50, 24, 12, 9
    x = torch.randn(tokens, hidden).to(dtype)
    router = torch.randn(experts, hidden)
    gate_up, down = torch.randn(experts, 2 * width, hidden).to(dtype), torch.randn(experts, hidden, width).to(dtype)
    weights, chosen = ops.moe_gating(ops.router(x, Weight.plain(router)), Gating(top_k, renormalize_eps=eps))
    rows, places, counts = ops.moe_init_routing(x, chosen, experts)
    acted = ops.swiglu(ops.grouped_matmul(rows, Weight.plain(gate_up), counts, top_k))
    y = ops.grouped_matmul(acted, Weight.plain(down), counts, top_k)
    ours = ops.moe_finalize_routing(y, places, weights)

    exact = torch.zeros(tokens, hidden, dtype=torch.float64)
    used = [0] * experts
    for t in range(tokens):
        scores = torch.softmax(router.double() @ x[t].double(), dim=0)
        best = sorted(range(experts), key=lambda e: -scores[e].item())[:top_k]
        norm = 1.0 if eps is None else sum(scores[e].item() for e in best) + eps
        for e in best:
            used[e] += 1
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            exact[t] += scores[e] / norm * (down[e].double() @ (gate * torch.sigmoid(gate) * up))
    assert counts.tolist() == used
    close(ours, exact, 1e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shared_expert_gate(dtype: torch.dtype) -> None:
    shared, x, weight = (torch.randn(rows, 24).to(dtype) for rows in (7, 7, 1))
    logits = [sum(a * b for a, b in zip(row, weight[0].tolist(), strict=True)) for row in x.tolist()]
    exact = torch.stack([row / (1 + math.exp(-logit)) for row, logit in zip(shared.double(), logits, strict=True)])
    ours = ops.shared_expert_gate(shared, x, weight)
    assert ours.dtype == dtype
    close(ours, exact, {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype])


def test_shared_expert_gate_of_each_ranks_share_sums_to_the_whole() -> None:
    parts, x, weight = torch.randn(4, 5, 24), torch.randn(5, 24), torch.randn(1, 24)
    whole = ops.shared_expert_gate(parts.sum(dim=0), x, weight)
    close(sum((ops.shared_expert_gate(part, x, weight) for part in parts), torch.zeros(5, 24)), whole.double())


def test_finalize_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    y, weights = torch.randn(21, 5), torch.rand(7, 3)
    places = torch.randperm(21).view(7, 3)
    exact = torch.stack([sum(weights[t, k] * y[places[t, k]] for k in range(3)) for t in range(7)])
    monkeypatch.setattr("atb_models.ops.moe.FINALIZE_TILE", 2)
    close(ops.moe_finalize_routing(y, places, weights), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("block_size", [16, 128])
def test_paged_attention(dtype: torch.dtype, heads: int, kv_heads: int, block_size: int) -> None:
    query_lens, kv_lens, dim = [1, 1, 300, 1, 5, 1], [1, 40, 300, 170, 33, 600], 8
    num_blocks = [-(-n // block_size) for n in kv_lens]
    blocks = iter(torch.randperm(sum(num_blocks)).tolist())
    table = torch.zeros(len(kv_lens), max(num_blocks), dtype=torch.int32)
    for row, n in enumerate(num_blocks):
        table[row, :n] = torch.tensor([next(blocks) for _ in range(n)])
    cache = kv_cache(*(torch.zeros(sum(num_blocks), block_size, kv_heads, dim, dtype=dtype) for _ in range(2)))
    keys, values = ([torch.randn(n, kv_heads, dim).to(dtype) for n in kv_lens] for _ in range(2))
    for row, n in enumerate(kv_lens):
        slots = torch.tensor([int(table[row, i // block_size]) * block_size + i % block_size for i in range(n)])
        ops.reshape_and_cache(keys[row], values[row], cache, slots_step(slots))
    q = torch.randn(sum(query_lens), heads, dim).to(dtype)
    ours = ops.paged_attention(q, cache, attention_step(query_lens, kv_lens, table), dim**-0.5)

    expected, token = [], 0
    for row, (count, n) in enumerate(zip(query_lens, kv_lens, strict=True)):
        for i in range(count):
            seen = n - count + i + 1
            for head in range(heads):
                kv = head * kv_heads // heads
                scores = keys[row][:seen, kv].double() @ q[token, head].double() * dim**-0.5
                expected.append(torch.softmax(scores, dim=0) @ values[row][:seen, kv].double())
            token += 1
    exact = torch.stack(expected).view(token, heads, dim)
    close(ours, exact, {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype])
