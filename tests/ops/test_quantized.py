"""Operations on int8 weights with scales: each backend against the same operation on the floats they stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.graph import meta_model
from atb_models.models.config_reader import load_model_config
from atb_models.ops import table
from atb_models.ops.native.library import active
from atb_models.ops.table import Op
from atb_models.ops.weight import Layout, Weight
from tests.records import map_tensors, shape_rule

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of the largest value. The native level multiplies the integers and scales the sum; torch rounds the weights first.
NATIVE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(params=["reference", "torch", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native":
        monkeypatch.delenv("ATB_CPU_ISA", raising=False)
        if active().level is None:
            pytest.skip("this CPU has no level of the library")
    else:
        monkeypatch.setenv("ATB_CPU_ISA", "reference")
    table.bind("reference" if request.param == "reference" else "cpu")
    return str(request.param)


def plain(rows: Tensor, scale: Tensor) -> Weight:
    layout = Layout.integers(tuple(rows.shape))
    assert layout.scales == scale.shape and layout.nbytes == rows.numel() + 4 * scale.numel()
    return Weight(layout, rows, scale)


def drawn(*shape: int) -> Weight:
    """With rows of very different scales, one of them all zeros."""
    rows = torch.randint(-127, 128, shape, dtype=torch.int8)
    rows[..., 1, :] = 0
    return plain(rows, torch.rand(shape[:-1]) / 500 + 1e-4)


def as_bound(weight: Weight, operation: Op, argument: str) -> Weight:
    """As the bound backend stores it."""
    packing = operation.packings.get(argument)
    if packing is None:
        return weight
    layout = packing.layout(weight.layout)
    packed = Weight(layout, torch.zeros(layout.stored, dtype=layout.dtype), weight.scale)
    for unit, matrix in enumerate(weight.rows) if len(weight.shape) == 3 else [(None, weight.rows)]:
        packing.pack(matrix, packed, unit)
    return packed


def floats(weight: Weight, dtype: torch.dtype) -> Weight:
    """The weight that it stands for: float32 products, rounded to `dtype`."""
    assert weight.scale is not None
    return Weight.plain((weight.rows.float() * weight.scale[..., None]).to(dtype))


def check(ours: Tensor, exact: Tensor, backend: str) -> None:
    assert ours.dtype == exact.dtype and ours.shape == exact.shape
    if backend == "native":
        error = (ours.double() - exact.double()).abs().max().item()
        assert error <= NATIVE[ours.dtype] * exact.abs().max().item()
    else:
        assert torch.equal(ours, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(backend: str, dtype: torch.dtype, rows: int, biased: bool) -> None:
    x, weight = torch.randn(rows, 52).to(dtype), drawn(37, 52)
    bias = torch.randn(37).to(dtype) if biased else None
    ours = ops.linear(x, as_bound(weight, ops.linear, "weight_OI"), bias)
    check(ours, ops.linear(x, floats(weight, dtype), bias), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 13])
def test_experts(backend: str, dtype: torch.dtype, tokens: int) -> None:
    """All three rows of a token; expert 4 gets none."""
    x, gate_up, down = torch.randn(tokens, 40).to(dtype), drawn(5, 2 * 27, 40), drawn(5, 40, 27)
    chosen = torch.stack([torch.randperm(4)[:3] for _ in range(tokens)])
    shares = torch.rand(tokens, 3)
    op = ops.moe_experts
    counts = torch.zeros(5, dtype=torch.int64)
    ours = ops.moe_experts(
        x, as_bound(gate_up, op, "gate_up_EGH"), as_bound(down, op, "down_EHF"), shares, chosen, counts
    )
    exact = op.reference(x, floats(gate_up, dtype), floats(down, dtype), shares, chosen)
    check(ours, exact, backend)
    assert counts.sum() == 3 * tokens and counts[4] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_rules_and_costs(backend: str, dtype: torch.dtype) -> None:
    """On meta tensors as on real ones; what is read is integers and scales."""
    x, weight = torch.randn(6, 52).to(dtype), as_bound(drawn(37, 52), ops.linear, "weight_OI")
    stack, chosen = drawn(5, 54, 52), torch.stack([torch.randperm(5)[:2] for _ in range(6)])
    counts = torch.bincount(chosen.flatten(), minlength=5)
    for op, args in (
        (ops.linear, (x, weight)),
        (ops.grouped_matmul, (x.repeat_interleave(2, 0), stack, counts, 2)),
    ):
        real = op(*args)
        by_rule = shape_rule(op)(*(on_meta(arg) for arg in args))
        assert by_rule.is_meta and (by_rule.shape, by_rule.dtype) == (real.shape, real.dtype)
    cost = ops.linear.cost(ops.linear(x, weight), x, weight)
    packed = weight.data.numel()
    assert cost.read == x.nbytes + packed + 4 * 37 and packed == (37 * 52 if backend != "native" else 48 * 52)


def on_meta(arg: object) -> object:
    if isinstance(arg, Weight):
        assert arg.scale is not None
        return replace(arg, data=arg.data.to("meta"), scale=arg.scale.to("meta"))
    return map_tensors(lambda x: x.to("meta"), arg)


def test_a_backend_may_refuse_it_by_name(monkeypatch: pytest.MonkeyPatch, demo: Path) -> None:
    monkeypatch.setattr(table, "_bound", ("npu", table.Backend({}, quantized=False)))
    config = load_model_config(demo)
    said = "npu takes no quantised weights yet, and quantize is w8a16; leave it out there"
    with pytest.raises(ConfigError, match=said):
        meta_model(config, torch.float16, quantize="w8a16")
    assert meta_model(config, torch.float16).layers[0].attn.qkv.stored.scale is None
