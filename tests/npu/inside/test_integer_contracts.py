"""The pretend device refuses what the operators on weights of integers do not document."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_npu
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.npu.fake import ContractMode
from tests.npu.soft.demands import ContractError

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
I8, I32, I64 = torch.int8, torch.int32, torch.int64
M, K, N, E = 40, 128, 96, 8


@pytest.fixture(autouse=True)
def device() -> None:
    torch.npu.set_device(0)


def zeros(*shape: int, dtype: torch.dtype = F16) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="npu:0")


def weight_only(**changed: object) -> object:
    arguments = {"x": zeros(M, K), "weight": zeros(N, K, dtype=I8).t(), "antiquant_scale": zeros(N)}
    return torch_npu.npu_weight_quant_batchmatmul(**(arguments | changed))


def int4(**changed: object) -> object:
    packed = {"weight": zeros(K, N // 8, dtype=I32), "antiquant_scale": zeros(4, N), "antiquant_group_size": 32}
    return weight_only(**(packed | changed))


def by_token(**changed: object) -> object:
    arguments = {"x1": zeros(M, K, dtype=I8), "x2": zeros(K, N, dtype=I8), "scale": zeros(N, dtype=F32)}
    more = {"pertoken_scale": zeros(M, dtype=F32), "output_dtype": F16}
    return torch_npu.npu_quant_matmul(**(arguments | more | changed))


def static(**changed: object) -> object:
    own = {"scale": zeros(N, dtype=I64), "bias": zeros(N, dtype=I32), "pertoken_scale": None}
    return by_token(**(own | changed))


def experts(x: Tensor, weight: Tensor, **changed: object) -> object:
    counts = {"group_list": zeros(E, dtype=I64), "split_item": 2, "group_type": 0, "group_list_type": 1}
    return torch_npu.npu_grouped_matmul([x], [weight], **(counts | changed))


def int8_experts(**changed: object) -> object:
    own = {"scale": [zeros(E, N, dtype=F32)], "per_token_scale": [zeros(M, dtype=F32)], "output_dtype": F16}
    return experts(zeros(M, K, dtype=I8), zeros(E, K, N, dtype=I8), **(own | changed))


def float_experts(weight: Tensor | None = None, **changed: object) -> object:
    own = {"antiquant_scale": [zeros(E, N)], "antiquant_offset": [zeros(E, N)]}
    return experts(zeros(M, K), zeros(E, K, N, dtype=I8) if weight is None else weight, **(own | changed))


def grouped_int4(groups: int) -> object:
    beside = {name: [zeros(E, groups, N)] for name in ("antiquant_scale", "antiquant_offset")}
    return float_experts(zeros(E, K, N // 8, dtype=I32), **beside)


def quantize(*changed: object) -> object:
    arguments = [zeros(M, K), zeros(1), zeros(1), torch.qint8, -1, False]
    return torch_npu.npu_quantize(*changed, *arguments[len(changed) :])


GOOD: dict[str, Callable[..., object]] = {
    "weight_only": weight_only,
    "int4": int4,
    "by_token": by_token,
    "by_token in bf16": lambda: by_token(scale=zeros(N, dtype=BF16), output_dtype=BF16, bias=zeros(N, dtype=BF16)),
    "static": static,
    "static in bf16": lambda: static(scale=zeros(N, dtype=F32), output_dtype=BF16),
    "int8_experts": int8_experts,
    "int8_experts with sums": lambda: int8_experts(per_token_scale=None, bias=[zeros(E, N, dtype=I32)]),
    "float_experts": float_experts,
    "grouped_int4": lambda: grouped_int4(4),
    "quantize": quantize,
    "quantize rows": lambda: torch_npu.npu_quantize(zeros(M, K), zeros(M), zeros(M), torch.qint8, -2, False),
    "dynamic": lambda: torch_npu.npu_dynamic_quant(zeros(M, K)),
    "param": lambda: torch_npu.npu_trans_quant_param(zeros(N, dtype=F32)),
}
BROKEN: dict[str, Callable[[], object]] = {
    "float32 scale beside float16": lambda: weight_only(antiquant_scale=zeros(N, dtype=F32)),
    "offset of another shape": lambda: weight_only(antiquant_offset=zeros(1)),
    "offset of another dtype": lambda: weight_only(antiquant_offset=zeros(N, dtype=F32)),
    "weight that is not turned": lambda: weight_only(weight=zeros(N, K, dtype=I8)),
    "bias of bf16": lambda: weight_only(
        x=zeros(M, K, dtype=BF16), antiquant_scale=zeros(N, dtype=BF16), bias=zeros(N, dtype=BF16)
    ),
    "group of 16": lambda: int4(antiquant_scale=zeros(8, N), antiquant_group_size=16),
    "group of 48": lambda: int4(antiquant_scale=zeros(3, N), antiquant_group_size=48),
    "group of all inputs": lambda: int4(antiquant_scale=zeros(1, N), antiquant_group_size=K),
    "groups without their size": lambda: int4(antiquant_group_size=0),
    "groups that lie across": lambda: int4(antiquant_scale=zeros(N, 4).t()),
    "packed along the inputs": lambda: int4(weight=zeros(K // 8, N, dtype=I32)),
    "no scale of rows for float32 bias": lambda: static(bias=zeros(N, dtype=F32)),
    "bf16 scale for float16": lambda: by_token(scale=zeros(N, dtype=BF16)),
    "int64 scale beside scales of rows": lambda: by_token(scale=zeros(N, dtype=I64)),
    "int64 scale for bf16": lambda: static(output_dtype=BF16),
    "no output dtype": lambda: by_token(output_dtype=None),
    "float16 bias": lambda: by_token(bias=zeros(N)),
    "scales of rows as a column": lambda: by_token(pertoken_scale=zeros(M, 1, dtype=F32)),
    "int8 weight that is a view": lambda: by_token(x2=zeros(N, K, dtype=I8).t()),
    "float32 scale of experts for bf16": lambda: int8_experts(output_dtype=BF16),
    "bf16 scale of experts for float16": lambda: int8_experts(scale=[zeros(E, N, dtype=BF16)]),
    "no scale of experts": lambda: int8_experts(scale=None),
    "float bias of experts": lambda: int8_experts(bias=[zeros(E, N)]),
    "no offsets of experts": lambda: float_experts(antiquant_offset=None),
    "int8 experts in groups": lambda: float_experts(
        antiquant_scale=[zeros(E, 4, N)], antiquant_offset=[zeros(E, 4, N)]
    ),
    "experts in groups of 16": lambda: grouped_int4(8),
    "experts that are a view": lambda: float_experts(zeros(E, N, K, dtype=I8).transpose(1, 2)),
    "float32 scales of npu_quantize": lambda: quantize(zeros(M, K), zeros(1, dtype=F32)),
    "dividing": lambda: torch_npu.npu_quantize(zeros(M, K), zeros(1), zeros(1), torch.qint8, -1, True),
    "float32 rows": lambda: torch_npu.npu_dynamic_quant(zeros(M, K, dtype=F32)),
    "int8 to pack": lambda: torch_npu.npu_convert_weight_to_int4pack(zeros(K, N, dtype=I8)),
    "36 outputs to pack": lambda: torch_npu.npu_convert_weight_to_int4pack(zeros(K, 36, dtype=I32)),
    "a view to pack": lambda: torch_npu.npu_convert_weight_to_int4pack(zeros(N, K, dtype=I32).t()),
}


@pytest.mark.parametrize("name", GOOD)
def test_documented_calls_are_taken(name: str) -> None:
    GOOD[name]()
    with FakeTensorMode(), ContractMode() as mode:
        GOOD[name]()
    assert len(mode.calls) == 1


@pytest.mark.parametrize("name", BROKEN)
def test_broken_calls_are_refused_with_tensors_and_without(name: str) -> None:
    with pytest.raises((ContractError, RuntimeError)):
        BROKEN[name]()
    with FakeTensorMode(), ContractMode(), pytest.raises((ContractError, RuntimeError)):
        BROKEN[name]()


def test_values_beyond_4_bits_are_not_packed() -> None:
    for value in (-9, 8):
        with pytest.raises(ContractError, match="beyond -8 to 7"):
            torch_npu.npu_convert_weight_to_int4pack(zeros(K, N, dtype=I32) + value)
    assert torch_npu.npu_convert_weight_to_int4pack(zeros(8, 8, dtype=I32) - 8).shape == (8, 1)


def test_the_int64_form_keeps_ten_bits_of_the_fraction() -> None:
    """The rest is cut off."""
    scale = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 2**-20 * 1.5], device="npu:0")
    words = torch_npu.npu_trans_quant_param(scale)
    assert words.dtype == I64 and (words >> 46).tolist() == [1] * 4
    low = (words & 0xFFFFFFFF).to(I32).cpu().view(F32)
    assert low.tolist() == [1.0, 1 + 2**-10, 1.0, 2**-20 * 1.5]
