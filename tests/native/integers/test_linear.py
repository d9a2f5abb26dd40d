"""Linear of the library with weights of integers, beside floats and beside int8 activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from atb_models.ops.native.integers import Integers, pack_into, packed_shape, put_in_panels
from atb_models.ops.native.library import Library
from atb_models.ops.native.linear import linear
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close
from tests.native.integers.weights import Plain, packed, random_integers

# [outputs, inputs], unit: whole panels, tails, a rank's cut groups, units with more than a piece of 256 inputs
BESIDE_FLOATS = [
    [(272, 512), 128], [(272, 512), 512], [(88, 1032), None], [(469, 352), 32], [(33, 472), 8], [(1, 24), 24],
    [(176, 88), 88], [(50, 176), 16], [(100, 1408), 704], [(40, 1056), 264], [(64, 469), None], [(20, 1), None],
]  # fmt: skip
BESIDE_INT8 = [(272, 512), (88, 1030), (469, 352), (33, 469), (1, 7), (176, 88), (100, 1)]
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 23, 100, 257, 520)


def check_rows(x: Tensor, whole: Tensor, compute: Callable[[Tensor], Tensor]) -> None:
    """A row has the same bits for any number of rows and of threads."""
    for rows in ROWS[:-1]:
        assert torch.equal(compute(x[-rows:]), whole[-rows:])
    torch.set_num_threads(3)
    for rows in (1, 7, ROWS[-1]):
        assert torch.equal(compute(x[:rows]), whole[:rows])


@pytest.mark.parametrize(
    ("library", "shape", "unit", "bits", "offset", "dtype"),
    crossed(LEVELS, BESIDE_FLOATS, [[4, False], [4, True], [8, True]], DTYPES),
    indirect=["library"],
)
def test_floats(
    library: Library, shape: tuple[int, int], unit: int | None, bits: int, offset: bool, dtype: torch.dtype
) -> None:
    plain = random_integers(shape, bits, unit, offset)
    weight = packed(library, plain, bits, unit)
    x, bias = torch.randn(ROWS[-1], shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
    whole = linear(library, x, weight, shape[0], bias)
    assert whole.dtype == dtype
    assert_close(whole, x.double() @ plain.exact().t() + bias.double())
    check_rows(x, whole, lambda rows: linear(library, rows, weight, shape[0], bias))


def test_halves_lose_nothing(library: Library) -> None:
    """Sums are exact where the largest activation of a piece is less than 2^11 times the smallest."""
    plain = random_integers((48, 256), 4, 64, offset=False)
    plain = replace(plain, scale=torch.ones_like(plain.scale))
    x = (torch.rand(5, 256) + 1) * 2.0 ** torch.randint(-5, 6, (5, 256))
    for dtype in (torch.float16, torch.bfloat16):
        given = x.to(dtype)
        exact = given.double() @ plain.exact().t()
        ours = linear(library, given, packed(library, plain, 4, 64), 48, out_dtype=torch.float32)
        assert (ours.double() - exact).abs().max() <= 4 * 2**-24 * exact.abs().max()
    one = torch.zeros(1, 256)
    one[0, 3], one[0, 9], one[0, 200] = 1.5, 2.0**-10, -3e5
    ours = linear(library, one, packed(library, plain, 4, 64), 48, out_dtype=torch.float32)
    assert torch.equal(ours, (one.double() @ plain.exact().t()).float())


def by_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales, as the reference makes them."""
    scale = x.float().abs().amax(-1) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (x.float() / scale[:, None]).round(), scale


@pytest.mark.parametrize(
    ("library", "shape", "offset", "dtype"), crossed(LEVELS, BESIDE_INT8, [False, True], DTYPES), indirect=["library"]
)
def test_int8_activations_by_token(library: Library, shape: tuple[int, int], offset: bool, dtype: torch.dtype) -> None:
    """The integers are exact, and so is what follows: the same float32 operations give the same bits."""
    plain = random_integers(shape, 8, None, offset)
    weight = packed(library, plain, 8, None, "token")
    x = torch.randn(ROWS[-1], shape[1]).to(dtype)
    x[5] = 0
    whole = linear(library, x, weight, shape[0], out_dtype=torch.float32)
    x8, x_scale = by_token(x)
    sums = (x8.double() @ plain.q.double().t()).float()
    if plain.offset is not None:
        sums -= x8.sum(-1, keepdim=True) * plain.offset[:, 0]
    assert torch.equal(whole, sums * x_scale[:, None] * plain.scale[:, 0])
    check_rows(x, whole, lambda rows: linear(library, rows, weight, shape[0], out_dtype=torch.float32))
    bias = torch.randn(shape[0]).to(dtype)
    assert torch.equal(linear(library, x[:9], weight, shape[0], bias), (whole[:9] + bias.float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_activations_by_a_given_scale(library: Library, dtype: torch.dtype) -> None:
    """quant_bias takes part as an integer; beyond -128 .. 127 activations stop."""
    outputs, inputs = 100, 469
    plain = random_integers((outputs, inputs), 8, None, offset=False)
    quant_bias, panels = torch.randint(-100000, 100000, (outputs,), dtype=torch.int32), -(-outputs // 16)
    bias_panels = torch.full((panels, 16), 7, dtype=torch.int32)
    put_in_panels(quant_bias, bias_panels)
    scale, shift = torch.tensor([0.017]), torch.tensor([-11.0])
    weight = packed(library, plain, 8, None, "token")
    weight = replace(weight, activations="static", input_scale=scale, input_offset=shift, quant_bias=bias_panels)
    x = (torch.randn(ROWS[-1], inputs) * 2).to(dtype)
    whole = linear(library, x, weight, outputs, out_dtype=torch.float32)
    x8 = (x.float() / scale + shift).round().clamp(-128, 127)
    assert (x8 == -128).any() and (x8 == 127).any()
    sums = x8.double() @ plain.q.double().t() + quant_bias
    assert torch.equal(whole, sums.float() * plain.scale[:, 0])
    check_rows(x, whole, lambda rows: linear(library, rows, weight, outputs, out_dtype=torch.float32))


@pytest.mark.parametrize("bits, activations", [(4, "float"), (8, "float"), (8, "token")])
def test_largest_integers_do_not_overflow(library: Library, bits: int, activations: str) -> None:
    """All products as large as they can be, of both signs: an int16 that saturated would show."""
    inputs, top = 4096, 2 ** (bits - 1)
    q = torch.tensor([-top, top - 1], dtype=torch.int8).repeat_interleave(8)[:, None].repeat(1, inputs)
    plain = Plain(q, torch.ones(16, 1), None, inputs)
    weight = packed(library, plain, bits, None, activations)
    x = torch.tensor([1.0, -1.0])[:, None].repeat(1, inputs)
    x[1, ::2] = 1
    ours = linear(library, x, weight, 16)
    x8, x_scale = by_token(x) if activations == "token" else (x, torch.ones(2))
    assert torch.equal(ours, (x8.double() @ q.double().t()).float() * x_scale[:, None])


@pytest.mark.parametrize("bits, activations", [(4, "float"), (8, "float"), (8, "token"), (8, "static")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_row_stays_alone(library: Library, bits: int, activations: str, dtype: torch.dtype) -> None:
    weight = packed(library, random_integers((100, 72), bits, None, offset=False), bits, None, activations)
    if activations == "static":
        weight = replace(weight, input_scale=torch.ones(1), input_offset=torch.zeros(1))
    x = torch.randn(40, 72).to(dtype)
    expected = linear(library, x, weight, 100)
    x[3, 1], x[17, 5] = float("nan"), float("inf")
    broken = linear(library, x, weight, 100)
    assert broken[3].isnan().all()
    if activations == "static":
        assert broken[17].isfinite().all(), "a given scale has a largest value"
    else:
        assert not broken[17].isfinite().any()
    kept = [row for row in range(40) if row not in (3, 17)]
    assert torch.equal(broken[kept], expected[kept])


def test_sizes_of_activations(library: Library) -> None:
    """From the smallest floats to the largest, and rows of zeros."""
    plain = random_integers((40, 264), 4, 88, offset=True)
    weight = packed(library, plain, 4, 88)
    for size in (1e-30, 1e-10, 1e10, 1e33):
        x = torch.randn(3, 264) * size
        exact = x.double() @ plain.exact().t()
        assert ((linear(library, x, weight, 40).double() - exact).abs().max() < 2e-6 * exact.abs().max()).all()
    assert linear(library, torch.full((3, 264), 1e-45), weight, 40).isfinite().all()
    assert linear(library, torch.zeros(3, 264), weight, 40).count_nonzero() == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_packing(library: Library, bits: int) -> None:
    """Rows may lie anywhere; values, places and shapes that do not go together are refused."""
    wide = random_integers((33, 128), bits, None, offset=False).q
    shape = packed_shape(bits, 33, 63)
    assert shape == ((3, 64, 8) if bits == 4 else (3, 64, 16))
    one, other = torch.zeros(shape, dtype=torch.int8), torch.ones(shape, dtype=torch.int8)
    pack_into(library, wide[:, :63], one, bits)
    pack_into(library, wide[:, :63].contiguous(), other, bits)
    assert torch.equal(one, other)
    for wrong in (wide[:, :63].t().contiguous().t(), wide[:, :63].short(), wide[:, :50], wide[:17, :63]):
        with pytest.raises(ValueError, match="pack"):
            pack_into(library, wrong, one, bits)


def test_refusals(library: Library) -> None:
    four = packed(library, random_integers((32, 64), 4, 32, offset=True), 4, 32)
    eight = packed(library, random_integers((32, 64), 8, None, offset=False), 8, None, "token")
    x = torch.randn(3, 64).half()

    def refused(weight: Integers, match: str, rows: Tensor = x, outputs: int = 32) -> None:
        with pytest.raises(ValueError, match=match):
            linear(library, rows, weight, outputs)

    refused(four, "do not go together", x[:, :60])
    refused(four, "do not go together", outputs=16)
    refused(replace(four, data=four.data[:1]), "data")
    refused(replace(four, data=four.data.view(torch.uint8)), "uint8")
    refused(replace(four, scale=four.scale[:, :1].clone()), "scale")
    refused(replace(four, scale=four.scale.half()), "float16")
    refused(replace(four, offset=four.scale[:1]), "offset")
    refused(replace(four, scale=four.scale.transpose(0, 1).contiguous().transpose(0, 1)), "do not lie together")
    refused(replace(four, data=four.data.to("meta")), "meta")
    refused(replace(four, unit=20), "units of 20")
    refused(replace(four, activations="token"), "beside token")
    refused(replace(eight, unit=64, scale=eight.scale[:, None]), "in units of 64 beside token")
    refused(replace(eight, activations="static"), "input scale")
    refused(replace(eight, input_scale=torch.ones(1)), "input scale")
    refused(replace(eight, quant_bias=torch.zeros(2, 16, dtype=torch.int32)), "bias of integers")
    with pytest.raises(ValueError, match="do not go together"):
        linear(library, x, four, 32, None, torch.ones(32))
