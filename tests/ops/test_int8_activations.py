"""Products of int8 with int8: their sums against 64-bit integers, the whole against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.ops.quantized.linear import integer_sums
from atb_models.ops.weight import Layout, Weight

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of the largest value: what is rounded once to the data type, after float32 steps.
ROUNDED = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


@pytest.fixture(autouse=True)
def reference() -> None:
    """Whatever an earlier test has bound: a backend may round between the parts in other places."""
    ops.bind("reference")


def weight(*shape: int, activations: str, offsets: bool = False) -> Weight:
    layout = Layout.integers(shape, activations=activations, offsets=offsets)  # type: ignore[arg-type]
    beside = {
        "scale": torch.rand(shape[:-1]) / 500 + 1e-4,
        "offset": torch.randint(-9, 9, shape[:-1]).float(),
        "input_scale": torch.rand(*shape[:-2], 1) / 40 + 1e-2,
        "input_offset": torch.randint(-20, 20, (*shape[:-2], 1)).float(),
        "quant_bias": torch.randint(-9000, 9000, shape[:-1], dtype=torch.int32),
    }
    held = {name: beside[name].to(one.dtype) for name, one in layout.beside.items()}
    return Weight(layout, torch.randint(-128, 128, shape, dtype=torch.int8), **held)


def product(x: Tensor, one: Weight) -> Tensor:
    """In float64, in which the sums of these integers are exact; activations are rounded in float32, as defined."""
    x = x.float()
    if one.quant_bias is None:
        scale = x.abs().amax(1, keepdim=True) / 127
        scale = torch.where(scale == 0, 1.0, scale)
        x8, sums = torch.round(x / scale), torch.zeros(())
    else:
        assert one.input_scale is not None and one.input_offset is not None
        x8 = torch.round(x / one.input_scale + one.input_offset).clamp(-128, 127)
        scale, sums = torch.ones(1), one.quant_bias.double()
    rows = one.rows.double() - (0 if one.offset is None else one.offset.double().unsqueeze(1))
    assert one.scale is not None
    return (x8.double() @ rows.t() + sums) * scale.double() * one.scale.double()


def close(ours: Tensor, exact: Tensor) -> bool:
    return bool((ours.double() - exact).abs().max() <= ROUNDED[ours.dtype] * exact.abs().max())


@pytest.mark.parametrize("inputs", [1, 40, 1024, 1025, 11008])
def test_sums_are_exact(inputs: int) -> None:
    """The largest that there can be, where float32 sums of all inputs would be rounded, and random ones."""
    x, rows = torch.randint(-128, 128, (3, inputs)), torch.randint(-128, 128, (5, inputs))
    x[0], rows[0], rows[1], rows[2, ::2] = -128, -128, 127, 127
    sums = integer_sums(x.to(torch.int8), rows.to(torch.int8))
    assert sums.dtype == torch.int32 and torch.equal(sums.long(), x @ rows.t())


def test_rows_are_quantised_to_the_nearest() -> None:
    """Halves to the even neighbour; rows of zeros and of the smallest floats."""
    least = 2.0**-149
    x = torch.tensor([[127.0, -127, 0.5, 1.5, -2.5], [0.0] * 5, [254.0, 1.0, 3.0, -254, -5], [127 * least, 0, 0, 0, 0]])
    integers, scale = ops.quantize(x)
    assert integers.tolist() == [[127, -127, 0, 2, -2], [0] * 5, [127, 0, 2, -127, -2], [127, 0, 0, 0, 0]]
    assert scale.tolist() == [1.0, 1.0, 2.0, least]


def test_static_rows_are_shifted_and_clamped() -> None:
    x = torch.tensor([[1.0, -1.0, 0.25, 100.0, -100.0]])
    one = ops.quantize_static(x, torch.tensor([0.5]), torch.tensor([3.0]))
    assert one.tolist() == [[5, 1, 4, 127, -128]] and one.dtype == torch.int8  # 3.5 goes to 4
    scales, offsets = torch.tensor([[0.5], [7.0], [0.25]]), torch.tensor([[3.0], [0.0], [-3.0]])
    of_experts = ops.quantize_static(x.repeat(3, 1), scales, offsets, torch.tensor([1, 0, 2]))
    assert of_experts.tolist() == [[5, 1, 4, 127, -128], *[[1, -7, -2, 127, -128]] * 2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("activations", "offsets"), [("token", False), ("token", True), ("static", False)])
def test_linear(dtype: torch.dtype, biased: bool, activations: str, offsets: bool) -> None:
    x, one = torch.randn(9, 53).to(dtype), weight(37, 53, activations=activations, offsets=offsets)
    x[4] = 0
    bias = torch.randn(37).to(dtype) if biased else None
    ours = ops.quant_linear(x, one, bias)
    assert ours.dtype == dtype and close(ours, product(x, one) + (0 if bias is None else bias.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate_up_by", ["token", "static", "float"])
@pytest.mark.parametrize("down_by", ["token", "static", "float"])
def test_experts(dtype: torch.dtype, gate_up_by: str, down_by: str) -> None:
    """Each product as its own weights say; with static ones each expert has scales of its own. Expert 4 has no row."""
    tokens, x = 7, torch.randn(7, 40).to(dtype)
    gate_up, down = weight(5, 2 * 27, 40, activations=gate_up_by), weight(5, 40, 27, activations=down_by)
    chosen, shares = torch.stack([torch.randperm(4)[:3] for _ in range(tokens)]), torch.rand(7, 3)
    counts = torch.zeros(5, dtype=torch.int64)
    ours = ops.quant_moe_experts(x, gate_up, down, shares, chosen, counts)
    exact = torch.zeros(tokens, 40, dtype=torch.float64)
    for token in range(tokens):
        for expert, share in zip(chosen[token].tolist(), shares[token].tolist(), strict=True):
            gate, up = one_product(x[token : token + 1], gate_up.matrix(expert)).to(dtype).chunk(2, dim=1)
            h = torch.nn.functional.silu(gate) * up
            exact[token] += share * one_product(h, down.matrix(expert)).to(dtype).double()[0]
    assert ours.dtype == dtype and close(ours, exact)
    assert counts.sum() == 3 * tokens and counts[4] == 0


def one_product(x: Tensor, one: Weight) -> Tensor:
    if one.layout.activations == "float":
        return torch.nn.functional.linear(x, one.dequantized(x.dtype))
    return ops.quant_linear(x, one)


def test_a_token_is_quantised_once_before_it_is_sent_to_its_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    run = ops.quantize.run
    monkeypatch.setattr(ops.quantize, "run", lambda x: rows.append(len(x)) or run(x))
    gate_up, down = weight(5, 54, 40, activations="token"), weight(5, 40, 27, activations="token")
    ops.quant_moe_experts(torch.randn(7, 40), gate_up, down, torch.rand(7, 3), torch.randint(0, 5, (7, 3)))
    assert rows == [7, 21]


def test_the_bias_of_integers_is_added_once_by_ranks_that_share_inputs() -> None:
    """The other ranks hold zeros; the sum of all is that of one rank."""
    x, whole = torch.randn(4, 48), weight(11, 48, activations="static")
    zeros = torch.zeros(11, dtype=torch.int32)
    parts = [weight_cut(whole, 0), *(replace(weight_cut(whole, rank), quant_bias=zeros) for rank in (1, 2))]
    ours = sum(ops.quant_linear(x[:, 16 * rank :][:, :16], part) for rank, part in enumerate(parts))
    assert isinstance(ours, Tensor) and close(ours, product(x, whole))


def weight_cut(whole: Weight, rank: int) -> Weight:
    rows = whole.rows[:, 16 * rank :][:, :16]
    return replace(whole, layout=replace(whole.layout, shape=(11, 16), stored=(11, 16)), data=rows)
