"""Sources that show the integers of another in another way: scales by units, floats, scales that must agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.layers.storage import Storage
from atb_models.models.weights.seen import dequantized
from atb_models.models.weights.seen.agreeing import Agreeing
from atb_models.models.weights.seen.dequantized import Dequantized
from atb_models.models.weights.seen.regrouped import Groups, Regrouped
from atb_models.models.weights.source import WeightSource
from tests.models.storages.schemes import Tensors


def read(source: WeightSource, name: str, dim: int | None = None, start: int = 0, stop: int = 0) -> Tensor:
    shape = list(source.shape(name))
    if dim is not None:
        shape[dim] = stop - start
    target = torch.empty(shape)
    assert source.read_into(name, dim, start, stop, target) == 0
    return target


@pytest.mark.parametrize(("inputs", "group", "unit"), [(96, 48, 16), (171, 128, 64), (97, 24, 8), (40, 64, 8)])
def test_scales_are_those_of_the_group_that_a_unit_is_in(inputs: int, group: int, unit: int) -> None:
    """Also of a last group and a last unit that are shorter; every cut reads its own."""
    scales = torch.rand(5, -(-inputs // group))
    source = Regrouped(Tensors({"w_scale": scales, "w": scales}), {"w_scale": Groups(inputs, group, unit)})
    units = -(-inputs // unit)
    expected = torch.stack([scales[:, i * unit // group] for i in range(units)], dim=1)
    assert source.shape("w_scale") == (5, units) and torch.equal(read(source, "w_scale"), expected)
    assert torch.equal(read(source, "w_scale", 0, 1, 4), expected[1:4])
    for start in range(units):
        assert torch.equal(read(source, "w_scale", 1, start, units), expected[:, start:])
        assert torch.equal(read(source, "w_scale", 1, 0, start + 1), expected[:, : start + 1])
    assert torch.equal(read(source, "w"), scales) and source.names() == {"w", "w_scale"}


def test_scales_of_rows_are_repeated_for_units() -> None:
    source = Regrouped(Tensors({"s": torch.tensor([1.0, 2.0, 3.0])}), {"s": Groups(32, None, 16)})
    assert read(source, "s").tolist() == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    assert read(source, "s", 0, 1, 3).tolist() == [[2.0, 2.0], [3.0, 3.0]]
    assert read(source, "s", 1, 1, 2).tolist() == [[1.0], [2.0], [3.0]]


def test_a_wrong_number_of_groups_is_shown_as_it_is() -> None:
    """The loader then names the tensor and both shapes."""
    for shape, group in (((5, 3), 64), ((5,), 64), ((5, 2), None)):
        source = Regrouped(Tensors({"s": torch.zeros(shape)}), {"s": Groups(96, group, 16)})
        assert source.shape("s") == shape


@pytest.mark.parametrize("band", [1, 70, 1 << 20])
@pytest.mark.parametrize("storage", [Storage(8), Storage(4, 32), Storage(4, 32, offset=True), Storage(8, offset=True)])
def test_floats_of_integers(storage: Storage, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """(integer - offset) * scale in float32 for any slice, with a last group that is shorter."""
    monkeypatch.setattr(dequantized, "BAND", band)
    groups = () if storage.group is None else (-(-72 // storage.group),)
    integers, scale = torch.randint(-8, 8, (5, 72), dtype=torch.int8), torch.rand(5, *groups)
    offsets = torch.randint(-8, 8, (5, *groups)).float()
    held = {"l.weight": integers, "l.weight_scale": scale, "l.weight_offset": offsets}
    tensors = {name: value for name, value in held.items() if storage.offset or "offset" not in name}
    source = Dequantized(Tensors(tensors | {"l.bias": torch.ones(5)}), {"l.weight": storage})
    assert source.names() == {"l.weight", "l.bias"} and source.shape("l.weight") == (5, 72)
    expected = torch.empty(5, 72)
    for row in range(5):
        for column in range(72):
            at = (row,) if storage.group is None else (row, column // storage.group)
            offset = held["l.weight_offset"][at] if storage.offset else torch.tensor(0.0)
            expected[row, column] = (integers[row, column].float() - offset) * scale[at]
    assert torch.equal(read(source, "l.weight"), expected)
    assert torch.equal(read(source, "l.weight", 0, 2, 5), expected[2:5])
    assert torch.equal(read(source, "l.weight", 1, 20, 50), expected[:, 20:50])
    assert read(source, "l.bias").tolist() == [1.0] * 5


def test_one_input_has_one_scale() -> None:
    tensors = {"q.input_scale": torch.tensor([0.5]), "k.input_scale": torch.tensor([0.5]),
               "v.input_scale": torch.tensor([0.25]), "o.input_scale": torch.tensor([0.125])}  # fmt: skip
    source = Agreeing(Tensors(tensors), {f"{role}.input_scale": "qkv" for role in "qkv"})
    assert [float(read(source, f"{role}.input_scale")) for role in "qko"] == [0.5, 0.5, 0.125]
    said = r"^memory: v.input_scale is 0.25 and q.input_scale is 0.5, but both are of one input"
    with pytest.raises(CheckpointError, match=said):
        read(source, "v.input_scale")
