"""The routed experts of the library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atb_models.ops.native.experts import experts, packed_gate_up_shape
from atb_models.ops.native.library import Library
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close, exact_experts, pack, pack_gate_up
from tests.native.test_linear import STORAGES

# experts, choices, hidden, width
SHAPES = [(8, 3, 512, 176), (5, 2, 130, 88), (3, 1, 64, 469), (16, 4, 128, 64), (7, 6, 96, 352)]
TOKENS = 530


class Layer:
    """Experts with random weights, packed, and tokens with random choices."""

    def __init__(
        self, library: Library, shape: tuple[int, int, int, int], dtype: torch.dtype, stored: torch.dtype
    ) -> None:
        self.library, (num, choices, hidden, self.width) = library, shape
        self.scales: tuple[Tensor | None, Tensor | None] = (None, None)
        if stored == torch.int8:
            gate_up, down = (
                torch.randint(-128, 128, size, dtype=stored)
                for size in ((num, 2 * self.width, hidden), (num, hidden, self.width))
            )
            first, second = torch.rand(num, 2 * self.width) / 2000, torch.rand(num, hidden) / 1000
            self.scales = first, second
            self.exact = gate_up.double() * first[..., None], down.double() * second[..., None]
        else:
            gate_up = (torch.randn(num, 2 * self.width, hidden) / 20).to(stored)
            down = (torch.randn(num, hidden, self.width) / 10).to(stored)
            self.exact = gate_up.double(), down.double()
        self.gate_up, self.down = pack_gate_up(library, gate_up), pack(library, down)
        self.x = torch.randn(TOKENS, hidden).to(dtype)
        self.weights, self.chosen = (torch.rand(TOKENS, num) * 4).softmax(-1).topk(choices)

    def run(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        given = self.x[rows], self.chosen[rows], self.weights[rows]
        counter = torch.zeros(self.gate_up.shape[0], dtype=torch.int64)
        out = experts(self.library, *given, self.gate_up, self.down, self.width, *self.scales, counter)
        return out, counter


@pytest.mark.parametrize(
    ("library", "shape", "dtype", "stored"), crossed(LEVELS, SHAPES, STORAGES), indirect=["library"]
)
def test_experts(library: Library, shape: tuple[int, int, int, int], dtype: torch.dtype, stored: torch.dtype) -> None:
    """Right, counted, and a token has the same bits alone, in any batch and with any number of threads."""
    layer = Layer(library, shape, dtype, stored)
    whole, counts = layer.run()
    assert_close(whole, exact_experts(layer.x, layer.chosen, layer.weights, *layer.exact), times=1.5)
    assert torch.equal(counts, torch.bincount(layer.chosen.flatten(), minlength=shape[0]))
    for start, count in ((0, 1), (3, 2), (0, 8), (5, 23), (17, 100), (100, 257), (511, 1), (512, 1), (500, 30)):
        part, _ = layer.run(slice(start, start + count))
        assert torch.equal(part, whole[start : start + count])
    torch.set_num_threads(3)
    assert torch.equal(layer.run()[0], whole)
    assert torch.equal(layer.run(slice(7, 8))[0], whole[7:8])


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_weights_are_computed_as_floats_of_the_activations_type(library: Library, dtype: torch.dtype) -> None:
    """The same instructions in the same order: scales of a power of two change no bit."""
    layer = Layer(library, (5, 2, 512, 88), dtype, torch.int8)
    integers, scale = torch.randint(-128, 128, (5, 2 * 88, 512)), 2.0**-10
    down = torch.randint(-128, 128, (5, 512, 88))
    eight = [pack_gate_up(library, integers.to(torch.int8)), pack(library, down.to(torch.int8))]
    floats = [pack_gate_up(library, (integers * scale).to(dtype)), pack(library, (down * scale).to(dtype))]
    scales = torch.full((5, 2 * 88), scale), torch.full((5, 512), scale)
    for rows in (1, 8, 200):
        given = layer.x[:rows], layer.chosen[:rows], layer.weights[:rows]
        assert torch.equal(experts(library, *given, *eight, 88, *scales), experts(library, *given, *floats, 88))


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_on_one_expert_and_none_on_others(library: Library, dtype: torch.dtype) -> None:
    layer = Layer(library, (8, 2, 64, 48), dtype, dtype)
    layer.chosen[:, 0], layer.chosen[:, 1] = 5, 2
    out, counts = layer.run()
    assert counts.tolist() == [0, 0, TOKENS, 0, 0, TOKENS, 0, 0]
    assert_close(out, exact_experts(layer.x, layer.chosen, layer.weights, *layer.exact), times=1.5)
    layer.chosen[:] = 5  # the same expert twice
    out, counts = layer.run()
    assert counts[5] == 2 * TOKENS
    assert_close(out, exact_experts(layer.x, layer.chosen, layer.weights, *layer.exact), times=1.5)
    out, counts = layer.run(slice(0, 0))
    assert out.shape == (0, 64) and counts.tolist() == [0] * 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_row_stays_alone(library: Library, dtype: torch.dtype) -> None:
    layer = Layer(library, (4, 2, 70, 90), dtype, dtype)
    expected, _ = layer.run()
    layer.x[11], layer.x[200] = float("nan"), float("inf")
    broken, _ = layer.run()
    assert broken[11].isnan().all() and not broken[200].isfinite().any()
    kept = [row for row in range(TOKENS) if row not in (11, 200)]
    assert torch.equal(broken[kept], expected[kept])


def test_shapes_that_fill_no_panel(library: Library) -> None:
    assert (
        pack_gate_up(library, torch.randn(2, 60, 32).half()).shape == packed_gate_up_shape(2, 30, 32) == (2, 4, 32, 16)
    )
    assert pack(library, torch.randn(2, 20, 30).half()).shape == (2, 2, 32, 16)


def test_counter_goes_on(library: Library) -> None:
    layer = Layer(library, (4, 2, 64, 48), torch.float16, torch.float16)
    given = layer.x, layer.chosen, layer.weights, layer.gate_up, layer.down, layer.width
    counter = torch.full((4,), 1000)
    out = experts(library, *given, counter_E=counter)
    assert torch.equal(counter, 1000 + torch.bincount(layer.chosen.flatten(), minlength=4))
    assert torch.equal(experts(library, *given), out)
    for wrong in (counter.int(), counter[:3]):
        with pytest.raises(ValueError, match="experts: "):
            experts(library, *given, counter_E=wrong)


def test_refusals(library: Library) -> None:
    layer = Layer(library, (4, 2, 64, 48), torch.float16, torch.float16)
    given = (layer.x, layer.chosen, layer.weights, layer.gate_up, layer.down, layer.width)
    refused = [
        (0, layer.x.float(), "weights of torch.float16"),
        (0, layer.x[:, :60], "do not go together"),
        (0, layer.x[:5], "do not go together"),
        (0, layer.x.to("meta"), "a tensor on meta"),
        (1, layer.chosen.int(), "choices of torch.int32"),
        (1, layer.chosen[:, :1].contiguous(), "do not go together"),
        (1, layer.chosen.clone().fill_(4), "an expert that there is not"),
        (1, layer.chosen.clone().fill_(-1), "an expert that there is not"),
        (2, layer.weights.half(), "weighted by torch.float16"),
        (2, layer.weights.t().contiguous().t(), "do not lie together"),
        (3, layer.gate_up[:3], "do not go together"),
        (4, layer.down.to(torch.int8), "weights of torch.float16 and torch.int8"),
        (5, 64, "do not go together"),
    ]
    for place, wrong, match in refused:
        with pytest.raises(ValueError, match=match):
            experts(library, *given[:place], wrong, *given[place + 1 :])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 scales"):
        experts(library, *given, torch.ones(4, 96), torch.ones(4, 64))
