"""Products with weights of integers against the definitions in float32 on the CPU, on the same integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.ops.table import TABLE, Op
from atb_models.ops.weight import Layout, Weight

TOKENS, INPUTS, OUTPUTS, EXPERTS, TOP_K = 37, 128, 96, 6, 3
FLOATS = {
    "int8": {},
    "int8 with offsets": {"offsets": True},
    "int4": {"bits": 4},
    "int4 with offsets": {"bits": 4, "offsets": True},
    "int4 in groups": {"bits": 4, "unit": 32},
    "int4 in groups with offsets": {"bits": 4, "unit": 64, "offsets": True},
    "int4 in one group": {"bits": 4, "unit": INPUTS, "offsets": True},
}
OF_LINEAR_MAPS = FLOATS | {
    "int8 in groups": {"unit": 32},
    "int8 in groups with offsets": {"unit": 32, "offsets": True},
}
INT8 = {"token": {"activations": "token"}, "static": {"activations": "static"}}


@pytest.fixture(autouse=True, scope="module")
def backend() -> None:
    ops.bind("npu")
    torch.npu.set_device(0)


@pytest.fixture(params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(11)


def drawn(*shape: int, dtype: torch.dtype, **how: Any) -> Weight:
    """Scales that differ by row and group, of powers of two, which all data types have; offsets that are no zeros."""
    layout = Layout.integers(shape, **how, meets=dtype)
    least, most = (-8, 7) if layout.bits == 4 else (-127, 127)
    rows = torch.randint(least, most + 1, shape, dtype=torch.int8)
    assert layout.scales is not None
    beside = {
        "scale": 2.0 ** torch.randint(-9, -4, layout.scales) / (32 if layout.activations == "static" else 1),
        "offset": torch.randint(least, most + 1, layout.scales).float(),
        "input_scale": 2.0 ** torch.randint(-6, -4, (*shape[:-2], 1)),
        "input_offset": torch.randint(-20, 20, (*shape[:-2], 1)).float(),
        "quant_bias": torch.randint(-9000, 9000, shape[:-1], dtype=torch.int32),
    }
    return Weight(layout, rows, **{name: beside[name] for name in layout.beside})


def on_device(operation: Op, **weights: Weight) -> list[Weight]:
    """The weights of an operation by argument, stored there as the backend stores them."""
    layouts = operation.packed({name: weight.layout for name, weight in weights.items()})
    return [stored(weight, layouts[name]) for name, weight in weights.items()]


def stored(weight: Weight, layout: Layout) -> Weight:
    data = _stored(weight.data, layout, weight.shape)
    beside = {name: _stored(tensor, layout.beside[name], None) for name, tensor in weight.beside.items()}
    return Weight(layout, data, **beside)


def _stored(plain: Tensor, layout: Layout, shape: tuple[int, ...] | None) -> Tensor:
    plain = plain.to("npu:0")
    if layout.packing is None:
        return plain
    held = Weight(layout, torch.zeros(layout.stored, dtype=layout.dtype, device="npu:0"))
    is_stack = plain.dim() == 3 or (shape is None and len(plain) == EXPERTS)
    for unit, matrix in enumerate(plain) if is_stack else [(None, plain)]:
        layout.packing.pack(matrix, held, unit)
    return held.data


def floats_of(weight: Weight, dtype: torch.dtype) -> Weight:
    """What products of `dtype` with it take, in float32."""
    if weight.layout.activations != "float":
        return weight
    if len(weight.shape) == 2:
        return Weight.plain(weight.dequantized(dtype).float())
    return Weight.plain(torch.stack([weight.dequantized(dtype, expert).float() for expert in range(EXPERTS)]))


def close(ours: Tensor, exact: Tensor, tolerance: float = 1.0) -> bool:
    """tolerance: in units of the rounding of our data type, of the largest value."""
    error = (ours.cpu().double() - exact.double()).abs().max().item()
    return error <= tolerance * torch.finfo(ours.dtype).eps * exact.abs().max().item()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("storage", OF_LINEAR_MAPS)
def test_linear(dtype: torch.dtype, storage: str, biased: bool) -> None:
    x, weight = torch.randn(TOKENS, INPUTS).to(dtype), drawn(OUTPUTS, INPUTS, dtype=dtype, **OF_LINEAR_MAPS[storage])
    bias = torch.randn(OUTPUTS).to(dtype) if biased else None
    (held,) = on_device(ops.linear, weight_OI=weight)
    assert held.layout.quantized and held.data.dtype in (torch.int8, torch.int32)
    ours = ops.linear(x.to("npu:0"), held, None if bias is None else bias.to("npu:0"))
    exact = TABLE["Linear"].reference(x.float(), floats_of(weight, dtype), None if bias is None else bias.float())
    assert ours.dtype == dtype and close(ours, exact)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("storage", INT8)
def test_linear_on_int8_activations(dtype: torch.dtype, storage: str, biased: bool) -> None:
    """Halves may be rounded to another side where a reciprocal of the operator is rounded."""
    x, weight = torch.randn(TOKENS, INPUTS).to(dtype), drawn(OUTPUTS, INPUTS, dtype=dtype, **INT8[storage])
    x[4] = 0
    bias = torch.randn(OUTPUTS).to(dtype) if biased else None
    (held,) = on_device(ops.quant_linear, weight_OI=weight)
    ours = ops.quant_linear(x.to("npu:0"), held, None if bias is None else bias.to("npu:0"))
    exact = _in_float32(ops.quant_linear, x.float(), weight, None if bias is None else bias.float())
    assert ours.dtype == dtype and close(ours, exact, 2)
    if storage == "token":
        assert torch.equal(ours[4].cpu(), torch.zeros(OUTPUTS, dtype=dtype) if bias is None else bias)


@pytest.mark.parametrize("down_by", [*FLOATS, *INT8])
@pytest.mark.parametrize("gate_up_by", ["int8 with offsets", "int4 in groups", *INT8])
def test_experts(dtype: torch.dtype, gate_up_by: str, down_by: str) -> None:
    """Each product as its own weights say. An expert has no row, and another more than others."""
    how = FLOATS | INT8
    width = 64 if "groups" not in down_by else INPUTS
    down_how = dict(how[down_by])
    if "one group" in down_by:
        down_how["unit"] = width
    gate_up = drawn(EXPERTS, 2 * width, INPUTS, dtype=dtype, **how[gate_up_by])
    down = drawn(EXPERTS, INPUTS, width, dtype=dtype, **down_how)
    x = (torch.randn(TOKENS, INPUTS) / 16).to(dtype)
    chosen = torch.stack([torch.randperm(EXPERTS - 1)[:TOP_K] for _ in range(TOKENS)])
    shares, counter = torch.rand(TOKENS, TOP_K), torch.zeros(EXPERTS, dtype=torch.int64)
    op = ops.moe_experts if {gate_up_by, down_by}.isdisjoint(INT8) else ops.quant_moe_experts
    held = on_device(op, gate_up_EGH=gate_up, down_EHF=down)
    counts = counter.to("npu:0")
    ours = op(x.to("npu:0"), *held, shares.to("npu:0"), chosen.int().to("npu:0"), counts)
    own = (floats_of(gate_up, dtype), floats_of(down, dtype))
    exact = _in_float32(op, x.float(), *own, shares, chosen, counter)
    assert ours.dtype == dtype and torch.equal(counts.cpu(), counter)
    error = (ours.cpu().float() - exact).abs()
    units = torch.finfo(dtype).eps * exact.abs().max()
    assert error.median() <= units and error.max() <= (30 if INT8.keys() & {gate_up_by, down_by} else 4) * units


def _in_float32(op: Op, *args: Any) -> Tensor:
    """By the definitions of all parts."""
    bound = {name: operation.run for name, operation in TABLE.items()}
    for operation in TABLE.values():
        operation.run = operation.reference
    try:
        result: Tensor = op(*args)
    finally:
        for name, run in bound.items():
            TABLE[name].run = run
    return result


FALLING_BACK = [
    (ops.linear, {"unit": 16, "bits": 4}, (OUTPUTS, INPUTS), "groups of 16 inputs"),
    (ops.linear, {"bits": 4}, (36, INPUTS), "outputs of 4 bits that are no multiple of 8"),
    (ops.linear, {}, (8, 65536), "more than 65535 inputs or outputs"),
    (ops.quant_linear, {"activations": "token", "offsets": True}, (OUTPUTS, INPUTS), "activations with offsets"),
    (ops.moe_experts, {"unit": 32}, (EXPERTS, OUTPUTS, INPUTS), "experts of 8 bits in groups"),
    (ops.moe_experts, {"unit": 8, "bits": 4}, (EXPERTS, OUTPUTS, 16), "groups of 8 inputs"),
]


@pytest.mark.parametrize(("operation", "how", "shape", "said"), FALLING_BACK, ids=[one[3] for one in FALLING_BACK])
def test_what_no_operator_takes_is_held_as_floats(
    dtype: torch.dtype, operation: Op, how: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    argument = "down_EHF" if len(shape) == 3 else "weight_OI"
    layout = operation.packed({argument: Layout.integers(shape, **how, meets=dtype)})[argument]
    assert layout.dtype == layout.loaded == dtype and not layout.quantized and layout.activations == "float"
    assert said in layout.instead and not layout.beside


def test_static_scales_that_no_operator_takes_are_refused(dtype: torch.dtype) -> None:
    wide = Layout.integers((8, 65536), activations="static", meets=dtype)
    with pytest.raises(ConfigError, match="npu has no product with static int8 activations for more than 65535"):
        ops.quant_linear.packed({"weight_OI": wide})


def test_a_whole_group_is_no_group(dtype: torch.dtype) -> None:
    one = replace(drawn(OUTPUTS, INPUTS, dtype=dtype, bits=4, unit=INPUTS).layout)
    layout = ops.linear.packed({"weight_OI": one})["weight_OI"]
    assert layout.beside["scale"].stored == (OUTPUTS,) and layout.beside["scale"].shape == (OUTPUTS, 1)
