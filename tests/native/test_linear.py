"""Linear of the library with packed weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atb_models.ops.native.library import Library
from atb_models.ops.native.linear import linear, packed_shape
from atb_models.ops.native.packing import Panels
from atb_models.ops.weight import Layout, Weight
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close, pack

# [outputs, inputs]: whole panels, tails of both, shards of widths that ranks leave, more than a block of inputs
SHAPES = [(272, 512), (88, 1030), (469, 352), (33, 469), (1, 7), (176, 88), (100, 1)]
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 23, 100, 257, 520)
STORAGES = [[dtype, stored] for dtype in DTYPES for stored in (dtype, torch.int8)]


def weight_of(outputs: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    """A weight, its scales, and what it stands for in float64."""
    if dtype != torch.int8:
        weight = (torch.randn(outputs, inputs) / 20).to(dtype)
        return weight, None, weight.double()
    weight, scale = torch.randint(-128, 128, (outputs, inputs), dtype=dtype), torch.rand(outputs) / 1000
    return weight, scale, weight.double() * scale[:, None].double()


@pytest.mark.parametrize(
    ("library", "shape", "dtype", "stored"), crossed(LEVELS, SHAPES, STORAGES), indirect=["library"]
)
def test_linear(library: Library, shape: tuple[int, int], dtype: torch.dtype, stored: torch.dtype) -> None:
    """Right, and a row has the same bits for any number of rows and threads."""
    weight, scale, exact = weight_of(*shape, stored)
    packed = pack(library, weight)
    assert packed.shape == packed_shape(*shape) and packed.dtype == stored
    x, bias = torch.randn(ROWS[-1], shape[1]).to(dtype), torch.randn(shape[0]).to(dtype)
    whole = linear(library, x, packed, shape[0], bias, scale)
    assert whole.dtype == dtype
    assert_close(whole, x.double() @ exact.t() + bias.double())
    for rows in ROWS[:-1]:
        assert torch.equal(linear(library, x[-rows:], packed, shape[0], bias, scale), whole[-rows:])
    torch.set_num_threads(3)
    for rows in (1, 7, ROWS[-1]):
        assert torch.equal(linear(library, x[:rows], packed, shape[0], bias, scale), whole[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_weights_are_computed_as_floats_of_the_activations_type(library: Library, dtype: torch.dtype) -> None:
    """The same instructions in the same order: the bits are those of the same integers, which every type holds."""
    integers = torch.cat((torch.arange(-128, 128).repeat(2), torch.randint(-128, 128, (99 * 512,)))).reshape(100, 512)
    eight, floats = pack(library, integers.to(torch.int8)), pack(library, integers.to(dtype))
    scale = 2.0 ** torch.randint(-9, 2, (100,))
    for rows in (1, 5, 12, 13, 100):
        x = torch.randn(rows, 512).to(dtype)
        exact = linear(library, x, floats, 100, out_dtype=torch.float32)
        assert torch.equal(linear(library, x, eight, 100, None, scale, torch.float32), exact * scale)


def test_router_scores_are_float32(library: Library) -> None:
    weight = torch.randn(64, 256)
    x = torch.randn(5, 256).half()
    scores = linear(library, x, pack(library, weight), 64, out_dtype=torch.float32)
    assert scores.dtype == torch.float32
    assert_close(scores, x.double() @ weight.double().t())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_row_stays_alone(library: Library, dtype: torch.dtype) -> None:
    weight, _, exact = weight_of(100, 70, dtype)
    packed, x = pack(library, weight), torch.randn(40, 70).to(dtype)
    expected = linear(library, x, packed, 100)
    x[3], x[17, 5] = float("nan"), float("inf")
    broken = linear(library, x, packed, 100)
    assert broken[3].isnan().all()
    assert torch.equal(broken[17].isinf(), exact[:, 5] != 0)
    kept = [row for row in range(40) if row not in (3, 17)]
    assert torch.equal(broken[kept], expected[kept])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_to_nearest_even_and_keeps_nan(library: Library, dtype: torch.dtype) -> None:
    """One input times 1: the result is the input's float32 value rounded as torch rounds it."""
    one = pack(library, torch.ones(1, 1))
    bits = torch.cat((torch.randint(-(2**31), 2**31, (4000,)), torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7F800000])))
    x = bits.to(torch.int32).view(torch.float32)
    x = torch.cat((x, torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 65519.0, 65520.0, -0.0, 2**-24, 2**-25])))
    ours = linear(library, x[:, None], one, 1, out_dtype=dtype)[:, 0]
    expected = (x * 1).to(dtype)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours[~ours.isnan()], expected[~ours.isnan()])


def test_packing_says_what_it_stores(library: Library) -> None:
    packing = Panels(library)
    plain = Layout.plain((33, 63), torch.float16)
    layout = packing.layout(plain)
    assert layout.stored == packed_shape(33, 63) == (3, 64, 16) and layout.shape == (33, 63)
    assert layout.nbytes == 3 * 64 * 16 * 2 and packing.rows == 16
    wide = torch.randn(33, 128).half()
    assert torch.equal(pack(library, wide[:, :63]), pack(library, wide[:, :63].contiguous()))
    weight = Weight(layout, torch.zeros(layout.stored, dtype=torch.float16))
    for wrong in (wide[:, :63].t().contiguous().t(), wide[:, :63].float(), wide[:, :59]):
        with pytest.raises(ValueError, match="pack"):
            packing.pack(wrong, weight, None)


def test_rows_may_lie_anywhere(library: Library) -> None:
    weight, x = torch.randn(48, 60).half(), torch.randn(9, 200).half()
    packed = pack(library, weight)
    parts = x[:, 61:121]  # 2 bytes off a multiple of 4
    assert torch.equal(linear(library, parts, packed, 48), linear(library, parts.contiguous(), packed, 48))
    assert linear(library, x[:0, :60], packed, 48).shape == (0, 48)


def test_refusals(library: Library) -> None:
    packed, x = pack(library, torch.randn(32, 64).half()), torch.randn(3, 64).half()
    eight, scale = pack(library, torch.zeros(32, 64, dtype=torch.int8)), torch.ones(32)
    refused = [
        (x.double(), packed, 32, None, None, "float64"),
        (x.float(), packed, 32, None, None, "float16"),
        (x, packed, 33, None, None, "do not go together"),
        (x, packed, 16, None, None, "do not go together"),
        (x[:, :60], packed, 32, None, None, "do not go together"),
        (x, packed, 32, torch.zeros(31).half(), None, "do not go together"),
        (x, packed, 32, torch.zeros(32, dtype=torch.int32), None, "int32"),
        (x, packed, 32, None, scale, "scales of torch.float32"),
        (x, eight, 32, None, None, "scales of None"),
        (x, eight, 32, None, scale.half(), "scales of torch.float16"),
        (x, eight, 32, None, scale[:5], "do not go together"),
        (x.t().contiguous().t(), packed, 32, None, None, "do not lie together"),
        (x.to("meta"), packed, 32, None, None, "a tensor on meta"),
    ]
    for given, weight, outputs, bias, scales, match in refused:
        with pytest.raises(ValueError, match=match):
            linear(library, given, weight, outputs, bias, scales)
