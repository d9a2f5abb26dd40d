"""The routed experts of the library with weights of integers, beside floats and beside int8 activations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from atb_models.ops.native.experts import experts
from atb_models.ops.native.integers import Integers
from atb_models.ops.native.library import Library
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close, exact_experts
from tests.native.integers.test_linear import by_token
from tests.native.integers.weights import Plain, packed, packed_gate_up, random_integers

# experts, choices, hidden, width, unit of hidden, unit of width: odd widths, cut groups, whole rows
BESIDE_FLOATS = [
    (8, 3, 512, 176, 128, 16), (5, 2, 136, 88, 8, 88), (3, 1, 64, 472, 64, 8), (16, 4, 128, 64, 32, 64),
    (7, 6, 96, 352, None, 32), (4, 2, 70, 90, None, None),
]  # fmt: skip
BESIDE_INT8 = [(8, 3, 512, 176), (5, 2, 130, 88), (3, 1, 64, 469), (16, 4, 128, 64), (7, 6, 96, 352)]
TOKENS = 530
PARTS = ((0, 1), (3, 2), (0, 5), (0, 8), (5, 23), (17, 100), (100, 257), (511, 1), (512, 1), (500, 30))


class Layer:
    """Experts with random integers, packed, and tokens with random choices."""

    def __init__(
        self,
        library: Library,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        bits: int,
        units: tuple[int | None, int | None] = (None, None),
        activations: str = "float",
        offset: bool = False,
    ) -> None:
        self.library, (self.num, choices, hidden, self.width) = library, shape
        self.plain = (
            random_integers((self.num, 2 * self.width, hidden), bits, units[0], offset),
            random_integers((self.num, hidden, self.width), bits, units[1], offset, 0.1),
        )
        self.gate_up = packed_gate_up(library, self.plain[0], bits, units[0], activations)
        self.down = packed(library, self.plain[1], bits, units[1], activations)
        self.x = torch.randn(TOKENS, hidden).to(dtype)
        self.weights, self.chosen = (torch.rand(TOKENS, self.num) * 4).softmax(-1).topk(choices)

    def run(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        given = self.x[rows], self.chosen[rows], self.weights[rows]
        counter = torch.zeros(self.num, dtype=torch.int64)
        return experts(self.library, *given, self.gate_up, self.down, self.width, counter_E=counter), counter

    def exact(self) -> Tensor:
        return exact_experts(self.x, self.chosen, self.weights, *(plain.exact() for plain in self.plain))

    def check_rows(self) -> Tensor:
        """A token has the same bits alone, in any batch and with any number of threads; rows are counted."""
        whole, counts = self.run()
        assert torch.equal(counts, torch.bincount(self.chosen.flatten(), minlength=self.num))
        for start, count in PARTS:
            part, _ = self.run(slice(start, start + count))
            assert torch.equal(part, whole[start : start + count])
        torch.set_num_threads(3)
        assert torch.equal(self.run()[0], whole)
        assert torch.equal(self.run(slice(7, 8))[0], whole[7:8])
        return whole


@pytest.mark.parametrize(
    ("library", "case", "bits", "offset", "dtype"),
    crossed(LEVELS, BESIDE_FLOATS, [[4, False], [4, True], [8, True]], DTYPES),
    indirect=["library"],
)
def test_floats(
    library: Library,
    case: tuple[int, int, int, int, int | None, int | None],
    bits: int,
    offset: bool,
    dtype: torch.dtype,
) -> None:
    layer = Layer(library, case[:4], dtype, bits, case[4:], offset=offset)
    assert_close(layer.check_rows(), layer.exact(), times=1.5)


def product(x: Tensor, plain: Plain, expert: int) -> Tensor:
    """Rows as int8 by token times the integers of an expert, in float32 as the reference has it."""
    x8, x_scale = by_token(x)
    sums = (x8.double() @ plain.q[expert].double().t()).float()
    if plain.offset is not None:
        sums -= x8.sum(-1, keepdim=True) * plain.offset[expert, :, 0]
    return sums * x_scale[:, None] * plain.scale[expert, :, 0]


def expected(layer: Layer) -> Tensor:
    out = torch.zeros(layer.x.shape)
    for k in range(layer.chosen.shape[1]):
        for expert in range(layer.num):
            rows = layer.chosen[:, k] == expert
            gate, up = product(layer.x[rows], layer.plain[0], expert).chunk(2, -1)
            inner = (silu(gate) * up).to(layer.x.dtype)
            out[rows] += layer.weights[rows, k, None] * product(inner, layer.plain[1], expert)
    return out


@pytest.mark.parametrize(
    ("library", "shape", "offset", "dtype"), crossed(LEVELS, BESIDE_INT8, [False, True], DTYPES), indirect=["library"]
)
def test_int8_activations_by_token(
    library: Library, shape: tuple[int, int, int, int], offset: bool, dtype: torch.dtype
) -> None:
    """As float32 operations on exact integers give it. A unit in the last place of silu can move an int8 by one, which
    is a 254th of the row's largest: that happens, but seldom."""
    layer = Layer(library, shape, dtype, 8, activations="token", offset=offset)
    whole, exact = layer.check_rows().double(), expected(layer).double()
    size = exact.abs().max().item()
    error = (whole - exact).abs().amax(-1) / size
    rounding = {torch.float32: 2e-6, torch.float16: 8e-4, torch.bfloat16: 6e-3}[dtype]
    assert error.quantile(0.9) <= rounding and error.max() <= 0.02


@pytest.mark.parametrize("bits, activations", [(4, "float"), (8, "token")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_on_one_expert_and_none_on_others(
    library: Library, bits: int, activations: str, dtype: torch.dtype
) -> None:
    layer = Layer(library, (8, 2, 64, 48), dtype, bits, activations=activations)
    layer.chosen[:, 0], layer.chosen[:, 1] = 5, 2
    out, counts = layer.run()
    assert counts.tolist() == [0, 0, TOKENS, 0, 0, TOKENS, 0, 0]
    check_close(layer, out)
    layer.chosen[:] = 5  # the same expert twice
    out, counts = layer.run()
    assert counts[5] == 2 * TOKENS
    check_close(layer, out)
    out, counts = layer.run(slice(0, 0))
    assert out.shape == (0, 64) and counts.tolist() == [0] * 8


def check_close(layer: Layer, out: Tensor) -> None:
    if layer.gate_up.bits == 4:
        assert_close(out, layer.exact(), times=1.5)
    else:
        exact = expected(layer)
        assert (out.float() - exact).abs().max() < 0.02 * exact.abs().max()


def test_given_scales_belong_to_experts(library: Library) -> None:
    """Each expert has its own: with those of two experts exchanged, all else being equal, so are the results."""
    layer = Layer(library, (3, 1, 64, 48), torch.float32, 8, activations="token")
    static: dict[str, object] = {"activations": "static", "input_offset": torch.zeros(3, 1)}
    scales = torch.tensor([[0.01], [0.02], [0.03]])

    def same_weights(weight: Integers) -> Integers:
        return replace(weight, data=weight.data[:1].repeat(3, 1, 1, 1), scale=weight.scale[:1].repeat(3, 1, 1))

    layer.gate_up = replace(same_weights(layer.gate_up), input_scale=scales, **static)  # type: ignore[arg-type]
    layer.down = replace(same_weights(layer.down), input_scale=scales, **static)  # type: ignore[arg-type]
    layer.chosen[:] = 0
    first, _ = layer.run()
    layer.chosen[:] = 2
    third, _ = layer.run()
    assert not torch.equal(first, third)
    layer.gate_up = replace(layer.gate_up, input_scale=scales.flip(0))
    layer.down = replace(layer.down, input_scale=scales.flip(0))
    assert torch.equal(layer.run()[0], first)


@pytest.mark.parametrize("bits, activations", [(4, "float"), (8, "token")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_row_stays_alone(library: Library, bits: int, activations: str, dtype: torch.dtype) -> None:
    layer = Layer(library, (4, 2, 72, 90), dtype, bits, activations=activations)
    before, _ = layer.run()
    layer.x[11], layer.x[200] = float("nan"), float("inf")
    broken, _ = layer.run()
    assert broken[11].isnan().all() and not broken[200].isfinite().any()
    kept = [row for row in range(TOKENS) if row not in (11, 200)]
    assert torch.equal(broken[kept], before[kept])


def test_refusals(library: Library) -> None:
    four = Layer(library, (4, 2, 64, 48), torch.float16, 4, (32, 16))
    eight = Layer(library, (4, 2, 64, 48), torch.float16, 8, activations="token")
    given = four.x, four.chosen, four.weights

    def refused(match: str, gate_up: object, down: object, width: int = 48, *scales: Tensor) -> None:
        with pytest.raises(ValueError, match=match):
            experts(library, *given, gate_up, down, width, *scales)  # type: ignore[arg-type]

    refused("two kinds", four.gate_up, eight.down)
    refused("two kinds", four.gate_up, eight.down.data)
    refused("2 scales", four.gate_up, four.down, 48, torch.ones(4, 96), torch.ones(4, 64))
    refused("do not go together", four.gate_up, four.down, 64)
    shorter = replace(
        four.down, data=four.down.data[:, :, :24].clone(), inputs=24, scale=four.down.scale[:, :, :2].clone()
    )
    refused("do not go together", four.gate_up, shorter)
    refused("data", four.gate_up, replace(four.down, data=four.down.data[:3]))
    refused("scale", replace(four.gate_up, scale=four.gate_up.scale[:, :4].clone()), four.down)
