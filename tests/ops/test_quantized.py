"""Operations on floats and integer weights: each backend against the same operation on the floats they stand for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.graph import meta_model
from atb_models.layers.storage import Storage
from atb_models.models.config_reader import load_model_config
from atb_models.ops import table
from atb_models.ops.native.library import active
from atb_models.ops.table import Op
from atb_models.ops.weight import Layout, Weight
from tests.models.storages.schemes import HandMade
from tests.records import in_layout, map_tensors, shape_rule

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


# Of a weight with 56 or 40 inputs on this rank, and 24: units that are groups, and parts of groups.
STORAGES = {
    "int8": {},
    "int8 with offsets": {"offsets": True},
    "int4": {"bits": 4},
    "int4 in units": {"bits": 4, "unit": 4},
    "int4 in units with offsets": {"bits": 4, "unit": 4, "offsets": True},
    "int8 in units": {"unit": 4},
    "int4 in units of 8 with offsets": {"bits": 4, "unit": 8, "offsets": True},
}


def drawn(*shape: int, **storage: Any) -> Weight:
    """With scales that differ very much, one row all zeros."""
    unit = storage.get("unit")
    layout = Layout.integers(shape, **storage | ({"unit": math.gcd(unit, shape[-1])} if unit else {}))
    assert layout.scales is not None
    least, most = (-8, 7) if layout.bits == 4 else (-128, 127)
    rows = torch.randint(least, most + 1, shape, dtype=torch.int8)
    rows[..., 1, :] = 0
    offset = torch.randint(least, most + 1, layout.scales).float() if layout.offsets else None
    return Weight(layout, rows, torch.rand(layout.scales) / 500 + 1e-4, offset)


def as_bound(operation: Op, **weights: Weight) -> list[Weight]:
    """The weights of an operation by argument as the bound backend stores them."""
    layouts = operation.packed({name: weight.layout for name, weight in weights.items()})
    return [packed(weight, layouts[name]) for name, weight in weights.items()]


def packed(weight: Weight, layout: Layout) -> Weight:
    stack = len(weight.shape) == 3
    beside = {name: in_layout(one, layout.beside[name], stack=stack) for name, one in weight.beside.items()}
    return Weight(layout, in_layout(weight.rows, layout, stack=stack), **beside)


def floats(weight: Weight, dtype: torch.dtype) -> Weight:
    """The weight that it stands for: (integer - offset) * scale in float32, input by input, rounded to `dtype`."""
    times = weight.shape[-1] if weight.layout.unit is None else weight.layout.unit
    scale, offset = (
        None if x is None else x.view(*weight.shape[:-1], -1).repeat_interleave(times, -1)
        for x in (weight.scale, weight.offset)
    )
    assert scale is not None
    rows = weight.rows.float() if offset is None else weight.rows.float() - offset
    return Weight.plain((rows * scale).to(dtype))


def check(ours: Tensor, exact: Tensor, backend: str) -> None:
    assert ours.dtype == exact.dtype and ours.shape == exact.shape
    if backend == "native":
        error = (ours.double() - exact.double()).abs().max().item()
        assert error <= NATIVE[ours.dtype] * exact.abs().max().item() + 2**-24  # the least step between halves
    else:
        assert torch.equal(ours, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
def test_linear(backend: str, dtype: torch.dtype, rows: int, biased: bool, storage: str) -> None:
    x, weight = torch.randn(rows, 56).to(dtype), drawn(37, 56, **STORAGES[storage])
    bias = torch.randn(37).to(dtype) if biased else None
    ours = ops.linear(x, *as_bound(ops.linear, weight_OI=weight), bias)
    check(ours, ops.linear(x, floats(weight, dtype), bias), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 13])
@pytest.mark.parametrize("storage", STORAGES)
def test_experts(backend: str, dtype: torch.dtype, tokens: int, storage: str) -> None:
    """All three rows of a token; expert 4 gets none."""
    x, how = torch.randn(tokens, 40).to(dtype), STORAGES[storage]
    gate_up, down = drawn(5, 2 * 24, 40, **how), drawn(5, 40, 24, **how)
    chosen = torch.stack([torch.randperm(4)[:3] for _ in range(tokens)])
    shares = torch.rand(tokens, 3)
    op = ops.moe_experts
    counts = torch.zeros(5, dtype=torch.int64)
    ours = ops.moe_experts(x, *as_bound(op, gate_up_EGH=gate_up, down_EHF=down), shares, chosen, counts)
    exact = op.reference(x, floats(gate_up, dtype), floats(down, dtype), shares, chosen)
    check(ours, exact, backend)
    assert counts.sum() == 3 * tokens and counts[4] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_shape_rules_and_costs(backend: str, dtype: torch.dtype) -> None:
    """On meta tensors as on real ones; what is read is integers and scales."""
    x, weight = torch.randn(6, 52).to(dtype), as_bound(ops.linear, weight_OI=drawn(37, 52))[0]
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
    scheme = HandMade({"o_proj.weight": Storage(8)})
    said = "npu takes no quantised weights yet, and the checkpoint's are w8a8; take the float weights"
    with pytest.raises(ConfigError, match=said):
        meta_model(replace(config, scheme=scheme), torch.float16)
    floats = replace(config, scheme=HandMade({}, biases=("model.norm.weight",)))
    for model in meta_model(config, torch.float16), meta_model(floats, torch.float16):
        assert model.layers[0].attn.qkv.stored.scale is None
