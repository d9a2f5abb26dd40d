"""What the operators on weights of integers demand of a call: see `contracts`.

The tables of data types are those of op-plugin's documents for Atlas A2.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.npu.soft.demands import FLOATS, HALF, contiguous, need, plain

I8, I32, I64, F16, BF16, F32 = (
    *(torch.int8, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32),
)
# npu_quant_matmul: scale, bias, whether there is a scale for each row -> result. None: no bias.
_QUANT_MATMUL = {
    *((scale, bias, False, F16) for scale in (I64, F32) for bias in (I32, None)),
    *((scale, bias, rows, BF16) for scale in (F32, BF16) for bias in (I32, BF16, F32, None) for rows in (True, False)),
    *((F32, bias, True, F16) for bias in (I32, BF16, F32, None)),
}
LARGEST = 65535


def npu_dynamic_quant(call: SimpleNamespace) -> None:
    x = call.input
    plain(call, "smooth_scales", "group_index", "dst_type")
    need(call.quant_mode == "pertoken" and call.dst_type_max == 0, f"quant_mode {call.quant_mode}")
    need(x.dim() >= 2 and x.dtype in HALF, f"input {x.shape} {x.dtype}")


def npu_quantize(call: SimpleNamespace) -> None:
    """With div_mode False, as products with static scales use it."""
    x, scales, offsets = call.input, call.scales, call.zero_points
    need(not call.div_mode, "div_mode True is not modelled here")
    need(x.dtype in FLOATS and scales.dtype == x.dtype, f"input {x.dtype}, scales {scales.dtype}")
    need(call.axis in (-1, -2), f"axis {call.axis}")
    need(scales.dim() == 1 and len(scales) in (1, x.shape[call.axis]), f"scales {scales.shape} for {x.shape}")
    need(offsets is None or _alike(offsets, scales), "zero_points are as scales are")
    need(torch_dtype(call.dtype) == torch.qint8, f"dtype {call.dtype}")


def npu_trans_quant_param(call: SimpleNamespace) -> None:
    plain(call, "offset")
    need(call.scale.dtype == F32 and call.scale.dim() == 1 and not call.round_mode, f"scale {call.scale.dtype}")
    contiguous(scale=call.scale)


def npu_convert_weight_to_int4pack(call: SimpleNamespace) -> None:
    weight = call.weight
    need(weight.dtype == I32 and weight.dim() == 2, f"weight {weight.dtype} {weight.shape}")
    need(weight.shape[1] % 8 == 0, f"the last dimension of {weight.shape} must be a multiple of 8")
    contiguous(weight=weight)


def npu_quant_matmul(call: SimpleNamespace) -> None:
    x, weight, scale, rows, bias = call.x1, call.x2, call.scale, call.pertoken_scale, call.bias
    plain(call, "offset", "x1_dtype", "x2_dtype", "pertoken_scale_dtype", "scale_dtype", "group_sizes", "y_scale")
    need(x.dtype == weight.dtype == I8, f"x1 {x.dtype}, x2 {weight.dtype}")
    need(x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[0], f"x1 {x.shape} is [M, K], x2 {weight.shape}")
    need(max(x.shape[1], weight.shape[1]) <= LARGEST, f"x2 {weight.shape}")
    need(scale.dim() == 1 and len(scale) in (1, weight.shape[1]), f"scale {scale.shape} for x2 {weight.shape}")
    need(rows is None or (rows.shape == x.shape[:1] and rows.dtype == F32), "pertoken_scale is float32 [M]")
    need(bias is None or bias.shape == weight.shape[1:], "bias is [N]")
    form = (scale.dtype, None if bias is None else bias.dtype, rows is not None, torch_dtype(call.output_dtype))
    need(form in _QUANT_MATMUL, f"scale, bias, scales of rows and output_dtype {form}")
    contiguous(x1=x, x2=weight, scale=scale)


def npu_weight_quant_batchmatmul(call: SimpleNamespace) -> None:
    x, weight, scale, offset, bias = call.x, call.weight, call.antiquant_scale, call.antiquant_offset, call.bias
    plain(call, "quant_scale", "quant_offset", "weight_dtype")
    need(call.inner_precise == 0, "inner_precise is for NZ weights")
    need(x.dim() == weight.dim() == 2 and x.dtype in HALF, f"x {x.shape} {x.dtype}")
    need(weight.dtype in (I8, I32), f"weight {weight.dtype}")
    turned = not weight.is_contiguous()
    need(not turned or weight.t().is_contiguous(), f"weight {weight.shape} lies with strides {weight.stride()}")
    inputs, outputs = weight.shape
    if weight.dtype == I32:
        need(not turned, "int4 is modelled as [K, N / 8]")
        outputs *= 8
    need(x.shape[1] == inputs and max(inputs, outputs) <= LARGEST, f"K of x {x.shape} and of the weight {weight.shape}")
    group = call.antiquant_group_size
    if group == 0:
        need(tuple(scale.shape) in ((outputs,), (1, outputs)), f"antiquant_scale {scale.shape} for {outputs} outputs")
    else:
        need(group % 32 == 0 and 32 <= group <= inputs - 1, f"antiquant_group_size {group} of {inputs} inputs")
        need(tuple(scale.shape) == (-(-inputs // group), outputs), f"antiquant_scale {scale.shape}, group {group}")
        need(scale.is_contiguous() != turned, "the scales of groups lie as the weight does")
    need(scale.dtype == x.dtype, f"antiquant_scale {scale.dtype} for x {x.dtype}")
    need(offset is None or _alike(offset, scale), "antiquant_offset is as antiquant_scale is")
    need(bias is None or (bias.shape == (outputs,) and bias.is_contiguous()), "bias is [N]")
    need(bias is None or bias.dtype == (F16 if x.dtype == F16 else F32), "bias is fp16 for fp16, fp32 for bf16")


def npu_grouped_matmul(call: SimpleNamespace) -> None:
    need(len(call.x) == len(call.weight) == 1, "one x and one stack of weights")
    plain(call, *(name for name, given in vars(call).items() if name not in _GROUPED and given))
    x, weight, groups = call.x[0], call.weight[0], call.group_list
    need(call.group_type == 0 and call.split_item in (2, 3), f"group_type {call.group_type}, split {call.split_item}")
    need(x.dim() == 2 and weight.dim() == 3, f"x {x.shape} is [R, K], weight {weight.shape} is [E, K, N]")
    need(x.shape[1] == weight.shape[1], f"K of x {x.shape} and of the weight {weight.shape}")
    need(max(weight.shape[1:]) < 65536, f"weight {weight.shape}")
    need(groups is not None and groups.dtype == torch.int64, "group_list is int64")
    need(tuple(groups.shape) == (weight.shape[0],), f"group_list {groups.shape} for {weight.shape[0]} experts")
    need(call.group_list_type in (0, 1), f"group_list_type {call.group_list_type}")
    contiguous(x=x, weight=weight, group_list=groups)
    if weight.dtype.is_floating_point:
        need(x.dtype in FLOATS and x.dtype == weight.dtype, f"x {x.dtype}, weight {weight.dtype}")
        plain(call, *_ONLY_INTEGERS)
    elif x.dtype == I8:
        _grouped_int8(call, x, weight)
    else:
        _grouped_floats(call, x, weight)


_ONLY_INTEGERS = ("bias", "scale", "antiquant_scale", "antiquant_offset", "per_token_scale")
_GROUPED = {"x", "weight", "group_list", "split_item", "group_type", "group_list_type", "output_dtype", *_ONLY_INTEGERS}


def _grouped_int8(call: SimpleNamespace, x: Tensor, weight: Tensor) -> None:
    """Of int8 rows: static scales, or one for each row."""
    plain(call, "antiquant_scale", "antiquant_offset")
    scale, bias, rows = _one(call.scale), _one(call.bias), _one(call.per_token_scale)
    experts, _, outputs = weight.shape
    out = torch_dtype(call.output_dtype)
    need(weight.dtype == I8 and out in HALF, f"weight {weight.dtype}, output_dtype {out}")
    need(scale is not None and scale.shape == (experts, outputs), "scale is [E, N]")
    need(scale.dtype == (BF16 if out == BF16 else F32), f"scale {scale.dtype} for results of {out}")
    need(rows is None or (rows.shape == x.shape[:1] and rows.dtype == F32), "per_token_scale is float32 [R]")
    need(bias is None or (bias.shape == (experts, outputs) and bias.dtype == I32), "bias is int32 [E, N]")
    contiguous(scale=scale)


def _grouped_floats(call: SimpleNamespace, x: Tensor, weight: Tensor) -> None:
    """Of rows of floats with int8, or with int4 eight to an int32."""
    plain(call, "bias", "scale", "per_token_scale", "output_dtype")
    scale, offset = _one(call.antiquant_scale), _one(call.antiquant_offset)
    experts, inputs, outputs = weight.shape
    need(x.dtype in HALF and weight.dtype in (I8, I32), f"x {x.dtype}, weight {weight.dtype}")
    outputs *= 8 if weight.dtype == I32 else 1
    need(scale is not None and scale.dtype == x.dtype, f"antiquant_scale is of x's dtype {x.dtype}")
    need(offset is not None and _alike(offset, scale), "antiquant_offset is needed, as antiquant_scale is")
    whole = tuple(scale.shape) == (experts, outputs)
    need(whole or (scale.dim() == 3 and weight.dtype == I32), f"antiquant_scale {scale.shape}: int8 has no groups")
    if not whole:
        groups = scale.shape[1]
        need(tuple(scale.shape) == (experts, groups, outputs), f"antiquant_scale {scale.shape} is [E, G, N]")
        need(inputs % groups == 0 and inputs // groups % 32 == 0, f"{groups} groups of {inputs} inputs")
    contiguous(antiquant_scale=scale, antiquant_offset=offset)


def _one(tensors: Any) -> Any:
    need(tensors is None or len(tensors) == 1, "a list of one tensor")
    return None if tensors is None else tensors[0]


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def torch_dtype(number: int | torch.dtype | None) -> torch.dtype | None:
    """Of the number that stands for it in a schema."""
    if number is None or isinstance(number, torch.dtype):
        return number
    return _NUMBERS.get(number)


# torch's numbers of data types (c10/core/ScalarType.h).
_NUMBERS = {1: I8, 3: I32, 4: I64, 5: F16, 6: F32, 12: torch.qint8, 15: BF16}
