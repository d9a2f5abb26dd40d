"""Every operation of the backend against its reference in float32 on the CPU; the same calls on fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.ops import npu
from atb_models.ops.gating import Gating
from atb_models.ops.plane import Plane
from atb_models.ops.table import TABLE
from atb_models.ops.weight import Layout, Weight
from tests.npu.fake import ContractMode
from tests.records import attention_step, kv_cache, map_tensors, slots_step

TOKENS, HIDDEN, EXPERTS, TOP_K, WIDTH = 37, 64, 8, 3, 48
QUERY_LENS, KV_LENS = [30, 1, 5, 1], [30, 200, 133, 1]
BLOCKS = 9


@pytest.fixture(autouse=True, scope="module")
def backend() -> None:
    torch.npu.set_device(0)
    ops.bind("npu")


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def down(value: Any) -> Any:
    """To the device."""
    return value.to("npu:0") if isinstance(value, Tensor) else value


def wide(value: Any) -> Any:
    """To float32, on the CPU."""
    return value.cpu().float() if isinstance(value, Tensor) and value.is_floating_point() else value


def compare(name: str, *args: Any, tolerance: float = 1.5) -> None:
    """`tolerance`: in units of the dtype's rounding."""
    operation = TABLE[name]
    assert operation.backend == "npu"
    halves = [arg.dtype for arg in args if isinstance(arg, Tensor) and arg.dtype in (torch.float16, torch.bfloat16)]
    unit = torch.finfo(halves[0]).eps if halves else 1e-5
    ours = operation(*(map_tensors(down, arg) for arg in args))
    exact = operation.reference(*(map_tensors(wide, arg) for arg in args))
    for mine, theirs in zip(_tuple(ours), _tuple(exact), strict=True):
        assert mine.device == torch.device("npu", 0) and mine.shape == theirs.shape
        error = (mine.cpu().double() - theirs.double()).abs().max().item()
        assert error <= tolerance * unit * max(1.0, theirs.abs().max().item()), f"{name} is off by {error:.1e}"


def packed(weight_EOI: Tensor) -> Weight:
    """A stack as the backend stores it."""
    packing = TABLE["MoeExperts"].packings["gate_up_EGH"]
    layout = packing.layout(Layout.plain(tuple(weight_EOI.shape), weight_EOI.dtype))
    stack = Weight(layout, torch.empty(layout.stored, dtype=layout.dtype, device=weight_EOI.device))
    for expert, matrix in enumerate(weight_EOI):
        packing.pack(matrix, stack, expert)
    return stack


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_norms_and_activation(dtype: torch.dtype) -> None:
    x, residual, weight = normal(TOKENS, 64, dtype=dtype), normal(TOKENS, 64, dtype=dtype), normal(64, dtype=dtype)
    compare("RmsNorm", x, weight, 1e-5)
    compare("AddRmsNorm", x, residual * 2, weight, 1e-5, tolerance=3)
    compare("SwiGlu", normal(TOKENS, 2 * WIDTH, dtype=dtype))
    compare("Linear", x, Weight.plain(normal(32, 64, dtype=dtype)), normal(32, dtype=dtype))


@pytest.mark.parametrize("head", [128, 80, 32])
def test_rotation(dtype: torch.dtype, head: int) -> None:
    positions = torch.arange(TOKENS, dtype=torch.int32) * 31
    inverse = 10000.0 ** -(torch.arange(0, head, 2) / head)
    packed = normal(TOKENS, 6, head, dtype=dtype)  # queries and keys are views of one product
    q, k = packed[:, :4], packed[:, 4:]
    tables = ops.rope_tables(positions.to("npu:0"), inverse.to("npu:0"), 1.0)
    exact = TABLE["Rope"].reference(q.float(), k.float(), *TABLE["RopeTables"].reference(positions, inverse, 1.0))
    for ours, theirs in zip(ops.rope(down(packed)[:, :4], down(packed)[:, 4:], *tables), exact, strict=True):
        assert ours.shape == theirs.shape and ours.is_contiguous()
        assert (ours.cpu().float() - theirs).abs().max() <= torch.finfo(dtype).eps * theirs.abs().max()


@pytest.mark.parametrize("head", [128, 80, 32])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cache_and_attention(dtype: torch.dtype, head: int, kv_heads: int) -> None:
    """Prompts, chunks and single tokens in one step; what the cache holds beyond a sequence is NaN."""
    shape = (BLOCKS, *ops.kv_plane_shape(128, Plane("k", kv_heads, head, dtype)))
    assert shape == (BLOCKS, 128, kv_heads, 128)
    table = torch.tensor([[7, 0], [2, 5], [8, 3], [1, 0]], dtype=torch.int32)
    cached = [normal(BLOCKS * 128, kv_heads, head, dtype=dtype, scale=scale) for scale in (1.0, 2.0)]
    slots = torch.cat(
        [
            (row[torch.arange(length) // 128] * 128 + torch.arange(length) % 128)
            for row, length in zip(table.long(), KV_LENS, strict=True)
        ]
    )
    cache = kv_cache(*(torch.full(shape, torch.nan, dtype=dtype, device="npu:0") for _ in range(2)))
    ops.reshape_and_cache(*(down(x[slots]) for x in cached), cache, slots_step(slots.int().to("npu:0")))
    q = normal(TOKENS, 4, head, dtype=dtype)
    step = attention_step(QUERY_LENS, KV_LENS, table)
    ours = ops.paged_attention(down(q), cache, map_tensors(down, step), head**-0.5)
    plain = kv_cache(*(x.float().view(BLOCKS, 128, kv_heads, head) for x in cached))
    exact = TABLE["PagedAttention"].reference(q.float(), plain, step, head**-0.5)
    assert ours.shape == q.shape
    assert (ours.cpu().float() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("renormalize_eps", [None, 1e-6])
def test_router_and_gating(dtype: torch.dtype, renormalize_eps: float | None) -> None:
    x, weight = normal(TOKENS, HIDDEN, dtype=dtype), normal(EXPERTS, HIDDEN, dtype=torch.float32)
    scores = ops.router(down(x), Weight.plain(down(weight)))
    assert scores.dtype == torch.float32
    compare("Router", x.float(), Weight.plain(weight))
    weights, experts = ops.moe_gating(scores, Gating(TOP_K, renormalize_eps=renormalize_eps))
    exact, chosen = TABLE["MoeGating"].reference(scores.cpu(), Gating(TOP_K, renormalize_eps=renormalize_eps))
    assert experts.dtype == torch.int32 and torch.equal(experts.cpu().long(), chosen)
    torch.testing.assert_close(weights.cpu(), exact)


@pytest.mark.parametrize("rule", [Gating(2, "sigmoid"), Gating(2, groups=4, top_groups=2), Gating(2, scaling=2.5)])
def test_rules_that_are_not_served_are_refused(rule: Gating) -> None:
    with pytest.raises(ConfigError, match="npu serves softmax over all experts without groups, bias and scaling"):
        ops.moe_gating(torch.zeros(3, 8, device="npu:0"), rule)
    with pytest.raises(ConfigError, match="npu serves softmax"):
        ops.moe_gating(torch.zeros(3, 8, device="npu:0"), Gating(2), torch.zeros(8, device="npu:0"))


def test_experts(dtype: torch.dtype) -> None:
    """From routing to the combination: what one operation gives is what the next one takes."""
    x = normal(TOKENS, HIDDEN, dtype=dtype)
    weights, experts = ops.moe_gating(down(normal(TOKENS, EXPERTS, dtype=torch.float32)), Gating(TOP_K))
    x_RH, rows_TK, counts_E = ops.moe_init_routing(down(x), experts, EXPERTS)
    theirs = TABLE["MoeInitRouting"].reference(x, experts.cpu().long(), EXPERTS)
    assert torch.equal(x_RH.cpu(), theirs[0]) and torch.equal(rows_TK.cpu().long(), theirs[1])
    assert counts_E.dtype == torch.int64 and torch.equal(counts_E.cpu(), theirs[2])

    weight = normal(EXPERTS, WIDTH, HIDDEN, dtype=dtype, scale=0.1)
    stack = packed(down(weight))
    assert stack.shape == weight.shape and torch.equal(stack.data.transpose(1, 2).cpu(), weight)
    ours = ops.grouped_matmul(x_RH, stack, counts_E, TOP_K)
    exact = TABLE["GroupedMatmul"].reference(theirs[0].float(), Weight.plain(weight.float()), theirs[2], TOP_K)
    assert (ours.cpu().float() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()

    combined = ops.moe_finalize_routing(ours, rows_TK, weights)
    exact = TABLE["MoeFinalizeRouting"].reference(ours.cpu().float(), theirs[1], weights.cpu())
    assert combined.dtype == dtype
    assert (combined.cpu().float() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 2, 128, torch.float16), "block_size 16: attention on npu takes blocks of 128, 256, 384, 512 tokens"),
        ((128, 2, 256, torch.float16), "head size 256: attention on npu takes heads up to 128 wide"),
        ((128, None, 576, torch.float16), "a latent of 576 values: attention on npu takes heads up to 128 wide"),
        ((16, 2, 128, torch.int8), "block_size 16: attention on npu takes blocks of 128, 256, 384, 512 tokens"),
        ((128, 2, 256, torch.int8), "head size 256: attention on npu takes heads up to 128 wide"),
    ],
)
def test_what_attention_does_not_take_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ops.kv_plane_shape(arguments[0], Plane("k", *arguments[1:]))


def test_shapes_on_meta_tensors_are_those_of_the_reference() -> None:
    """The recorded graph asks the backend's own bodies."""

    def meta(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    with torch.no_grad():
        assert ops.rms_norm(meta(5, 8), meta(8), 1e-6).shape == (5, 8)
        cache = kv_cache(meta(4, 128, 2, 128), meta(4, 128, 2, 128))
        step = attention_step([4, 1], [4, 9], meta(2, 2, dtype=torch.int32), device="meta")
        assert ops.paged_attention(meta(5, 4, 80), cache, step, 0.1).shape == (5, 4, 80)
        weights, experts = ops.moe_gating(meta(5, 8, dtype=torch.float32), Gating(3))
        x, rows, counts = ops.moe_init_routing(meta(5, 16), experts, 8)
        assert x.shape == (15, 16) and rows.shape == (5, 3) and counts.shape == (8,)
        assert ops.moe_finalize_routing(x, rows, weights).shape == (5, 16)


def test_fake_tensors_pass_every_contract() -> None:
    npu._mask.cache_clear()
    with FakeTensorMode(), ContractMode() as mode, torch.inference_mode():
        x = torch.empty(5, 16, dtype=torch.float16, device="npu:0")
        weights, experts = ops.moe_gating(torch.empty(5, 8, device="npu:0"), Gating(3))
        rows = ops.moe_init_routing(x, experts, 8)
        stack = packed(torch.empty(8, 24, 16, dtype=torch.float16, device="npu:0"))
        y = ops.grouped_matmul(rows[0], stack, rows[2], 3)
        assert ops.moe_finalize_routing(y, rows[1], weights).shape == (5, 24)
    assert mode.calls == [
        "npu::npu_moe_gating_top_k",
        "npu::npu_moe_init_routing_v2",
        "npu::npu_grouped_matmul",
        "npu::npu_moe_token_unpermute",
    ]
    npu._mask.cache_clear()
