"""Weights of integers as the loader leaves them: the library's operations beside the reference's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.ops.native.library import Library
from atb_models.ops.native.packing import IntegerPanels
from atb_models.ops.table import Op
from atb_models.ops.weight import Layout, Weight
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, TOLERANCE
from tests.records import in_layout

TOKENS = (1, 7, 40)
# inputs of a rank's share of groups, and whole rows
UNITS = [[88, 8], [176, 16], [352, 32], [352, 88], [472, None], [1408, 128], [1024, 512], [264, 264]]
BESIDE_FLOATS: list[dict[str, Any]] = [{"bits": 4}, {"bits": 4, "offsets": True}, {"bits": 8, "offsets": True}]
BESIDE_INT8: list[dict[str, Any]] = [
    {"activations": "token"},
    {"activations": "token", "offsets": True},
    {"activations": "static"},
]


@pytest.fixture(autouse=True)
def bound(library: Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ATB_CPU_ISA", library.level.name)
    ops.bind("cpu")
    yield
    ops.bind("reference")


def drawn(*shape: int, **storage: Any) -> Weight:
    """A plain weight whose values are about 0.05, with all that its storage has beside them."""
    layout = Layout.integers(shape, **storage)
    assert layout.scales is not None
    top = 2 ** (layout.bits - 1)
    beside = {
        "scale": (torch.rand(layout.scales) + 0.5) / 10 / top,
        "offset": torch.randint(-top // 2, top // 2, layout.scales).float(),
        "input_scale": torch.rand(*shape[:-2], 1) / 100 + 0.02,
        "input_offset": torch.randint(-20, 20, (*shape[:-2], 1)).float(),
        "quant_bias": torch.randint(-3000, 3000, shape[:-1], dtype=torch.int32),
    }
    held = {name: beside[name] for name in layout.beside}
    return Weight(layout, torch.randint(-top, top, shape, dtype=torch.int8), **held)


def as_bound(operation: Op, **weights: Weight) -> list[Weight]:
    layouts = operation.packed({name: weight.layout for name, weight in weights.items()})
    return [stored(weight, layouts[name]) for name, weight in weights.items()]


def stored(weight: Weight, layout: Layout) -> Weight:
    """What the loader makes of it: the values, and what is beside them."""
    assert isinstance(layout.packing, IntegerPanels) and layout.nbytes < 1.6 * weight.nbytes + 4096
    stack = len(weight.shape) == 3
    beside = {name: in_layout(one, layout.beside[name], stack=stack) for name, one in weight.beside.items()}
    return Weight(layout, in_layout(weight.rows, layout, stack=stack), **beside)


def floats(weight: Weight) -> Weight:
    return Weight.plain(weight.dequantized(torch.float32))


def check(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype and ours.shape == exact.shape
    assert (ours.double() - exact.double()).abs().max() <= 2 * TOLERANCE[dtype] * exact.abs().max()


@pytest.mark.parametrize(
    ("library", "storage", "inputs", "unit", "dtype"),
    crossed(LEVELS, BESIDE_FLOATS, UNITS, DTYPES),
    indirect=["library"],
)
def test_linear(storage: dict[str, Any], inputs: int, unit: int | None, dtype: torch.dtype) -> None:
    """Within the rounding of floats, of which the reference has more: it rounds the weights."""
    plain = drawn(100, inputs, unit=unit, **storage)
    (packed,) = as_bound(ops.linear, weight_OI=plain)
    for rows in TOKENS:
        x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(100).to(dtype)
        exact = ops.linear.reference(x.float(), floats(plain), bias.float())
        check(ops.linear(x, packed, bias), exact, dtype)


@pytest.mark.parametrize(
    ("library", "storage", "inputs", "dtype"),
    crossed(LEVELS, BESIDE_INT8, [88, 176, 352, 472, 1100], DTYPES),
    indirect=["library"],
)
def test_linear_with_int8_activations(storage: dict[str, Any], inputs: int, dtype: torch.dtype) -> None:
    """The bits of the reference."""
    plain = drawn(100, inputs, **storage)
    (packed,) = as_bound(ops.quant_linear, weight_OI=plain)
    for rows in TOKENS:
        x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(100).to(dtype)
        x[-1] = 0
        assert torch.equal(ops.quant_linear(x, packed, bias), ops.quant_linear.reference(x, plain, bias))


def routes(tokens: int, experts: int, top_k: int) -> list[tuple[Tensor, Tensor]]:
    """Any experts; all tokens on one of them and another, which leaves the others without rows."""
    weights, chosen = torch.rand(tokens, experts).softmax(-1).topk(top_k)
    return [(weights, chosen), (weights, torch.tensor([3, 1])[:top_k].repeat(tokens, 1))]


EXPERTS = [
    [88, 176, (8, 16)], [176, 352, (16, 88)], [264, 88, (264, 8)], [472, 24, (None, None)], [128, 1408, (64, 128)],
]  # fmt: skip


@pytest.mark.parametrize(
    ("library", "storage", "hidden", "width", "units", "dtype"),
    crossed(LEVELS, BESIDE_FLOATS, EXPERTS, DTYPES),
    indirect=["library"],
)
def test_experts(
    storage: dict[str, Any], hidden: int, width: int, units: tuple[int | None, int | None], dtype: torch.dtype
) -> None:
    """The units of the two products may differ."""
    plain = drawn(5, 2 * width, hidden, unit=units[0], **storage), drawn(5, hidden, width, unit=units[1], **storage)
    packed = as_bound(ops.moe_experts, gate_up_EGH=plain[0], down_EHF=plain[1])
    for tokens in TOKENS:
        x = torch.randn(tokens, hidden).to(dtype)
        for weights, chosen in routes(tokens, 5, 2):
            counts = torch.zeros(2, 5, dtype=torch.int64)
            exact = ops.moe_experts.reference(x.float(), *map(floats, plain), weights, chosen, counts[0])
            check(ops.moe_experts(x, *packed, weights, chosen, counts[1]), exact, dtype)
            assert torch.equal(counts[0], counts[1])


@pytest.mark.parametrize(
    ("library", "storage", "hidden", "width", "dtype"),
    crossed(LEVELS, BESIDE_INT8, [[88, 176], [176, 352], [472, 88], [130, 24]], DTYPES),
    indirect=["library"],
)
def test_experts_with_int8_activations(storage: dict[str, Any], hidden: int, width: int, dtype: torch.dtype) -> None:
    """The rounding of gate and up, which the reference has, moves some of the integers between the products by one."""
    plain = drawn(5, 2 * width, hidden, **storage), drawn(5, hidden, width, **storage)
    packed = as_bound(ops.quant_moe_experts, gate_up_EGH=plain[0], down_EHF=plain[1])
    for tokens in TOKENS:
        x = torch.randn(tokens, hidden).to(dtype)
        for weights, chosen in routes(tokens, 5, 2):
            exact = ops.quant_moe_experts.reference(x, *plain, weights, chosen).double()
            ours = ops.quant_moe_experts(x, *packed, weights, chosen)
            assert ours.dtype == dtype
            error = (ours.double() - exact).abs() / exact.abs().max()
            assert error.max() <= 0.02 and error.mean() <= 5 * TOLERANCE[dtype]


def test_what_has_no_form_stays_plain() -> None:
    """Units that are no multiple of 8; two products that are not stored alike."""
    odd = Layout.integers((48, 96), bits=4, unit=4)
    assert ops.linear.packed({"weight_OI": odd})["weight_OI"].is_plain
    token, four = Layout.integers((3, 32, 16), activations="token"), Layout.integers((3, 16, 16), bits=4)
    both = ops.quant_moe_experts.packed({"gate_up_EGH": token, "down_EHF": four})
    assert all(layout.is_plain for layout in both.values())


def on_meta(layout: Layout) -> Weight:
    beside = {name: torch.empty(one.stored, dtype=one.dtype, device="meta") for name, one in layout.beside.items()}
    return Weight(layout, torch.empty(layout.stored, dtype=layout.dtype, device="meta"), **beside)


@pytest.mark.parametrize("storage", [*BESIDE_FLOATS, *BESIDE_INT8])
def test_shapes_and_bytes_on_meta_tensors(storage: dict[str, Any]) -> None:
    by_floats = storage.get("activations", "float") == "float"
    linear, experts = (ops.linear, ops.moe_experts) if by_floats else (ops.quant_linear, ops.quant_moe_experts)
    x = torch.empty(9, 352, dtype=torch.float16, device="meta")
    weight = on_meta(linear.packed({"weight_OI": Layout.integers((100, 352), **storage)})["weight_OI"])
    assert weight.nbytes == sum(tensor.nbytes for tensor in weight.tensors)
    assert linear.shape(x, weight).shape == (9, 100)
    plain = {
        "gate_up_EGH": Layout.integers((5, 176, 352), **storage),
        "down_EHF": Layout.integers((5, 352, 88), **storage),
    }
    stacks = map(on_meta, experts.packed(plain).values())
    weights, chosen = torch.empty(9, 2, device="meta"), torch.empty(9, 2, dtype=torch.int64, device="meta")
    assert experts.shape(x, *stacks, weights, chosen).shape == x.shape
