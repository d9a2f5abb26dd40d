"""The pretend device refuses what attention over an int8 cache, and the write of scales, do not document."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch_npu
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.npu.fake import ContractMode
from tests.npu.soft.demands import ContractError

F16, F32, I8, I32 = torch.float16, torch.float32, torch.int8, torch.int32
BLOCKS, HEADS = 24, 4


@pytest.fixture(autouse=True)
def device() -> None:
    torch.npu.set_device(0)


def zeros(*shape: int, dtype: torch.dtype = F16) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="npu:0")


def single(**changed: object) -> object:
    cache = zeros(BLOCKS, 128, HEADS * 128, dtype=I8)
    scale = zeros(BLOCKS, HEADS, 128, dtype=F32)
    arguments = {
        "query": zeros(3, HEADS, 1, 128),
        "key": cache,
        "value": cache.clone(),
        "key_antiquant_scale": scale,
        "value_antiquant_scale": scale.clone(),
        "key_antiquant_mode": 5,
        "value_antiquant_mode": 5,
        "actual_seq_lengths_kv": [100, 1, 128],
        "block_table": zeros(3, 1, dtype=I32),
        "block_size": 128,
        "num_heads": HEADS,
        "num_key_value_heads": HEADS,
        "input_layout": "BNSD",
    }
    return torch_npu.npu_fused_infer_attention_score(**(arguments | changed))


def packed(**changed: object) -> object:
    arguments = {
        "query": zeros(12, HEADS, 128),
        "key": zeros(40, HEADS, 128),
        "value": zeros(40, HEADS, 128),
        "atten_mask": torch.ones(2048, 2048, dtype=I8, device="npu:0").triu(1),
        "actual_seq_lengths": [5, 12],
        "actual_seq_lengths_kv": [5, 40],
        "num_heads": HEADS,
        "num_key_value_heads": HEADS,
        "input_layout": "TND",
        "sparse_mode": 3,
    }
    return torch_npu.npu_fused_infer_attention_score(**(arguments | changed))


def update(**changed: object) -> object:
    places = torch.arange(7, dtype=I32, device="npu:0").unsqueeze(1)
    arguments = {"input": zeros(90, dtype=F32), "indices": places, "updates": zeros(7, dtype=F32)}
    return torch_npu.npu_scatter_nd_update_(**(arguments | changed))


GOOD: dict[str, Callable[..., object]] = {"single": single, "packed": packed, "update": update}
# Calls that torch_npu's own schemas and Meta kernels let pass, most of them, but not the device.
BROKEN: dict[str, Callable[[], object]] = {
    "no scales": lambda: single(key_antiquant_scale=None, value_antiquant_scale=None),
    "scales of the keys alone": lambda: single(value_antiquant_scale=None),
    "scales token after token": lambda: single(key_antiquant_scale=zeros(BLOCKS, 128, HEADS, dtype=F32)),
    "scales with a dimension of 1": lambda: single(value_antiquant_scale=zeros(BLOCKS, HEADS, 128, 1, dtype=F32)),
    "scales of half precision": lambda: single(key_antiquant_scale=zeros(BLOCKS, HEADS, 128)),
    "scales that are a view": lambda: single(
        key_antiquant_scale=zeros(BLOCKS, 128, HEADS, dtype=F32).transpose(1, 2)
    ),
    "scales of fewer blocks": lambda: single(key_antiquant_scale=zeros(BLOCKS - 1, HEADS, 128, dtype=F32)),
    "another mode": lambda: single(key_antiquant_mode=4, value_antiquant_mode=4),
    "modes that differ": lambda: single(value_antiquant_mode=3),
    "two queries of a sequence": lambda: single(query=zeros(3, HEADS, 2, 128)),
    "integers packed": lambda: packed(key=zeros(40, HEADS, 128, dtype=I8), value=zeros(40, HEADS, 128, dtype=I8)),
    "a mode of packed queries": lambda: packed(key_antiquant_mode=5, value_antiquant_mode=5),
    "no lengths": lambda: single(actual_seq_lengths_kv=None),
    "totals of single queries": lambda: single(actual_seq_lengths_kv=[100, 101, 229]),
    "no block table": lambda: single(block_table=None),
    "a mask": lambda: single(atten_mask=zeros(2048, 2048, dtype=I8), sparse_mode=3),
    "own lengths without blocks": lambda: packed(actual_seq_lengths_kv=[5, 35]),
    "block size without blocks": lambda: packed(block_size=128),
    "keys of other heads": lambda: packed(key=zeros(40, 2, 128), value=zeros(40, 2, 128)),
    "places in one dimension": lambda: update(indices=zeros(7, dtype=I32)),
    "places of floats": lambda: update(indices=zeros(7, 1)),
    "updates of another type": lambda: update(updates=zeros(7)),
    "updates of another shape": lambda: update(updates=zeros(7, 1, dtype=F32)),
    "update of a view": lambda: update(input=zeros(90, 2, dtype=F32)[:, 0]),
}
# What only values show.
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a place beyond": (lambda: update(indices=zeros(7, 1, dtype=I32) + 90), "indices beyond"),
    "a place twice": (lambda: update(indices=zeros(7, 1, dtype=I32)), "the same place"),
    "a block beyond": (lambda: single(block_table=zeros(3, 1, dtype=I32) + BLOCKS), "leaves the cache"),
}


@pytest.mark.parametrize("name", GOOD)
def test_documented_calls_are_taken(name: str) -> None:
    GOOD[name]()
    with FakeTensorMode(), ContractMode():
        GOOD[name]()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_calls_are_refused_with_tensors_and_without(name: str) -> None:
    with pytest.raises((ContractError, RuntimeError)):
        BROKEN[name]()
    with FakeTensorMode(), ContractMode(), pytest.raises((ContractError, RuntimeError)):
        BROKEN[name]()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ContractError, match=message):
        call()
