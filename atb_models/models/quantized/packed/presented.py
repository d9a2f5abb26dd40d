"""The tensors of the internal form (see scheme.py) that stand for one packed weight, and how each is filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from atb_models.layers.storage import Storage
from atb_models.models.quantized.packed.weight import PackedWeight, StaticInput, dequantize_into, spread_rows

_ONE = range(1)  # the column of a grid of one column


class Presented(NamedTuple):
    """One tensor: fill(target, weight, *ranges) writes those ranges of its dimensions to the target."""

    weight: PackedWeight
    shape: tuple[int, ...]
    fill: Callable[..., None]


def presented(name: str, weight: PackedWeight, storage: Storage | None) -> dict[str, Presented]:
    """The tensors by their names. name: `<linear>.weight`; storage None: floats are asked for."""
    if storage is None:
        return {name: Presented(weight, weight.shape, dequantize_into)}
    rows, columns = weight.shape
    grid = (rows,) if storage.group is None else (rows, -(-columns // storage.group))
    static = storage.activations == "static"
    parts = {
        name: Presented(weight, weight.shape, _fill_values),
        f"{name}_scale": Presented(weight, grid, _fill_scales_of_sums if static else _fill_scales),
    }
    if storage.offset:
        parts[f"{name}_offset"] = Presented(weight, grid, _fill_offsets)
    if static:
        linear = name.removesuffix(".weight")
        parts[f"{linear}.input_scale"] = Presented(weight, (1,), _fill_input_scale)
        parts[f"{linear}.input_offset"] = Presented(weight, (1,), _fill_input_offset)
        parts[f"{linear}.quant_bias"] = Presented(weight, (rows,), _fill_quant_bias)
    return parts


def _fill_values(target: Tensor, weight: PackedWeight, rows: range, columns: range) -> None:
    target.copy_(weight.values(rows, columns))


def _fill_scales(target: Tensor, weight: PackedWeight, rows: range, columns: range = _ONE) -> None:
    target.copy_(spread_rows(weight, rows, columns).view(target.shape))


def _fill_offsets(target: Tensor, weight: PackedWeight, rows: range, columns: range = _ONE) -> None:
    target.copy_(spread_rows(weight, rows, columns, offsets=True).view(target.shape))


def _fill_scales_of_sums(target: Tensor, weight: PackedWeight, rows: range) -> None:
    """Of the integer products: the inputs' scale times the weight's."""
    target.copy_((spread_rows(weight, rows, _ONE) * _static(weight).scale).view(target.shape))


def _fill_input_scale(target: Tensor, weight: PackedWeight, one: range) -> None:
    target.copy_(_static(weight).scale[one.start : one.stop])


def _fill_input_offset(target: Tensor, weight: PackedWeight, one: range) -> None:
    target.copy_(_static(weight).offset[one.start : one.stop])


def _fill_quant_bias(target: Tensor, weight: PackedWeight, rows: range) -> None:
    """What an offset of the inputs adds to the sums of whole rows, to be taken away."""
    sums = weight.values(rows, range(weight.shape[1])).sum(dim=1, dtype=torch.int64)
    target.copy_(sums * -int(_static(weight).offset))


def _static(weight: PackedWeight) -> StaticInput:
    given = weight.static_input()
    assert given is not None, "a storage with static activations, but no scale of the inputs"
    return given
