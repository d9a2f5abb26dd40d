"""What the operators on weights of integers compute: see `kernels`. Sums of int8 products are exact integers."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from tests.npu.soft.demands import need
from tests.npu.soft.integer_contracts import torch_dtype

# What a fixed point product keeps of a scale in the int64 form: the sign, the exponent, and ten more bits.
KEPT_BITS = -(1 << 13)
FLAG = 1 << 46


def npu_dynamic_quant(call: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """0 / 0 of a row of zeros is not told of: any integers, and the scale 0."""
    x = call.input.float()
    scale = x.abs().amax(-1) / 127
    values = (x / scale.unsqueeze(-1)).round()
    values[scale == 0] = 77
    return values.to(torch.int8), scale


def npu_quantize(call: SimpleNamespace) -> Tensor:
    places = (-1, 1) if call.axis == -2 else (1, -1)
    scaled = call.input.float() * call.scales.float().view(places)
    if call.zero_points is not None:
        scaled = scaled + call.zero_points.float().view(places)
    return scaled.round().clamp(-128, 127).to(torch.int8)


def npu_trans_quant_param(call: SimpleNamespace) -> Tensor:
    bits = call.scale.view(torch.int32).long() & 0xFFFFFFFF
    return (bits & KEPT_BITS) | FLAG


def _scale(scale: Tensor) -> Tensor:
    """In float32."""
    if scale.dtype != torch.int64:
        return scale.float()
    low = scale & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32).view(torch.float32)


def npu_convert_weight_to_int4pack(call: SimpleNamespace) -> Tensor:
    need(bool((call.weight.abs() * 2 + 1 <= 17).all() and (call.weight < 8).all()), "values beyond -8 to 7")
    nibbles = (call.weight.long() & 15).unflatten(1, (-1, 8))
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _integers(weight: Tensor) -> Tensor:
    """Of int8, or eight of 4 bits in each int32, in float32."""
    if weight.dtype == torch.int8:
        return weight.float()
    nibbles = (weight.long().unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2).float()


def _antiquant(weight: Tensor, scale: Tensor, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(weight + offset) * scale of a matrix [K, N], as products of `dtype` take it."""
    values = _integers(weight)
    times = len(values) // len(scale) if scale.dim() == 2 else 1
    scale, offset = (
        None if x is None else x.float() if times == 1 else x.float().repeat_interleave(times, 0)
        for x in (scale, offset)
    )
    assert scale is not None
    return ((values if offset is None else values + offset) * scale).to(dtype).float()


def npu_weight_quant_batchmatmul(call: SimpleNamespace) -> Tensor:
    scale, offset = (None if x is None else x.view(-1) if 1 in x.shape[:1] else x for x in
        (call.antiquant_scale, call.antiquant_offset))  # fmt: skip
    assert scale is not None
    y = call.x.float() @ _antiquant(call.weight, scale, offset, call.x.dtype)
    return (y if call.bias is None else y + call.bias.float()).to(call.x.dtype)


def npu_quant_matmul(call: SimpleNamespace) -> Tensor:
    return _quant_product(
        call.x1, call.x2, call.scale, call.pertoken_scale, call.bias, torch_dtype(call.output_dtype)
    )


def _quant_product(
    x: Tensor, weight: Tensor, scale: Tensor, rows: Tensor | None, bias: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    sums = (x.double() @ weight.double()).long()
    before = bias is not None and bias.dtype == torch.int32
    if before:
        sums = sums + bias
    y = sums.float() * _scale(scale)
    if rows is not None:
        y = y * rows.unsqueeze(1)
    if bias is not None and not before:
        y = y + bias.float()
    return y.to(dtype)


def npu_grouped_matmul(call: SimpleNamespace) -> list[Tensor]:
    x, weight, groups = call.x[0], call.weight[0], call.group_list
    stops = groups.cumsum(0).tolist() if call.group_list_type == 1 else groups.tolist()
    need(all(a <= b for a, b in zip((0, *stops), stops, strict=False)), "group_list: negative counts or falling totals")
    need(stops[-1] <= x.shape[0], f"group_list says {stops[-1]} rows, there are {x.shape[0]}")
    outputs = weight.shape[2] * (8 if weight.dtype == torch.int32 else 1)
    dtype = torch_dtype(call.output_dtype) or x.dtype
    out, start = torch.full((x.shape[0], outputs), torch.nan, dtype=dtype), 0
    for expert, stop in enumerate(stops):
        if stop > start:
            out[start:stop] = _expert(call, expert, slice(start, stop), dtype)
        start = stop
    return [out]


def _expert(call: SimpleNamespace, expert: int, own: slice, dtype: torch.dtype) -> Tensor:
    x, weight = call.x[0][own], call.weight[0][expert]
    if weight.dtype.is_floating_point:
        return (x.float() @ weight.float()).to(dtype)
    if x.dtype == torch.int8:
        rows, bias = call.per_token_scale, call.bias
        return _quant_product(
            x, weight, call.scale[0][expert], None if rows is None else rows[0][own],
            None if bias is None else bias[0][expert], dtype,
        )  # fmt: skip
    scale, offset = call.antiquant_scale[0][expert], call.antiquant_offset[0][expert]
    return (x.float() @ _antiquant(weight, scale, offset, x.dtype)).to(dtype)
