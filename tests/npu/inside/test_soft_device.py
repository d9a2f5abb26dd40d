"""The pretend device itself: it behaves like a device, and refuses what the operators do not document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch_npu
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from tests.npu.fake import ContractMode
from tests.npu.soft import counts
from tests.npu.soft.demands import ContractError

F16, I8, I32, I64 = torch.float16, torch.int8, torch.int32, torch.int64
TOKENS, HIDDEN, HEADS, HEAD, EXPERTS, TOP_K, WIDTH, BLOCKS, SEQS = 40, 256, 2, 128, 8, 3, 96, 9, 5
CACHE = (BLOCKS, 128, HEADS, HEAD)


@pytest.fixture(autouse=True)
def device() -> None:
    torch.npu.set_device(0)
    counts.reset()


def zeros(*shape: int, dtype: torch.dtype = F16) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="npu:0")


def attend(**changed: object) -> object:
    lengths = list(range(TOKENS // SEQS, TOKENS + 1, TOKENS // SEQS))
    arguments = {
        "query": zeros(TOKENS, HEADS, HEAD),
        "key": zeros(BLOCKS, 128, HEADS * HEAD),
        "value": zeros(BLOCKS, 128, HEADS * HEAD),
        "atten_mask": torch.ones(2048, 2048, dtype=I8, device="npu:0").triu(1),
        "block_table": zeros(SEQS, 1, dtype=I32),
        "actual_seq_lengths": lengths,
        "actual_seq_lengths_kv": [100] * SEQS,
        "num_heads": HEADS,
        "num_key_value_heads": HEADS,
        "input_layout": "TND",
        "block_size": 128,
        "sparse_mode": 3,
    }
    return torch_npu.npu_fused_infer_attention_score(**(arguments | changed))


def scatter(**changed: object) -> object:
    arguments = {
        "key": zeros(TOKENS, HEADS, HEAD),
        "value": zeros(TOKENS, HEADS, HEAD),
        "key_cache": zeros(*CACHE),
        "value_cache": zeros(*CACHE),
        "slot_mapping": torch.arange(TOKENS, dtype=I32, device="npu:0"),
        "cache_mode": "Norm",
    }
    return torch_npu.npu_scatter_pa_kv_cache(**(arguments | changed))


def route(**changed: object) -> object:
    arguments = {
        "x": zeros(TOKENS, HIDDEN),
        "expert_idx": zeros(TOKENS, TOP_K, dtype=I32),
        "active_num": TOKENS * TOP_K,
        "expert_num": EXPERTS,
        "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True,
        "active_expert_range": [0, EXPERTS],
        "quant_mode": -1,
    }
    return torch_npu.npu_moe_init_routing_v2(**(arguments | changed))


def multiply(weight: Tensor | None = None, **changed: object) -> object:
    arguments = {"group_list": zeros(EXPERTS, dtype=I64), "split_item": 2, "group_type": 0, "group_list_type": 1}
    weight = zeros(EXPERTS, HIDDEN, WIDTH) if weight is None else weight
    return torch_npu.npu_grouped_matmul([zeros(TOKENS, HIDDEN)], [weight], **(arguments | changed))


def combine(**changed: object) -> object:
    arguments = {
        "permuted_tokens": zeros(TOKENS * TOP_K, HIDDEN),
        "sorted_indices": torch.arange(TOKENS * TOP_K, dtype=I32, device="npu:0"),
        "probs": zeros(TOKENS, TOP_K),
    }
    return torch_npu.npu_moe_token_unpermute(**(arguments | changed))


GOOD: dict[str, Callable[..., object]] = {
    "attend": attend,
    "scatter": scatter,
    "route": route,
    "multiply": multiply,
    "combine": combine,
}
# Calls that torch_npu's own schemas and Meta kernels let pass, most of them, but not the device.
BROKEN: dict[str, Callable[[], object]] = {
    "gamma of another length": lambda: torch_npu.npu_rms_norm(zeros(TOKENS, HIDDEN), zeros(77), 1e-6),
    "residual of another shape": lambda: torch_npu.npu_add_rms_norm(zeros(3, 8), zeros(4, 8), zeros(8), 1e-6),
    "odd gate-up": lambda: torch_npu.npu_swiglu(zeros(3, 7), -1),
    "cos of half the head": lambda: torch_npu.npu_rotary_mul(zeros(1, 3, 2, 8), zeros(1, 3, 1, 4), zeros(1, 3, 1, 4)),
    "cos of another dtype": lambda: torch_npu.npu_rotary_mul(
        zeros(1, 3, 2, 8), *[zeros(1, 3, 1, 8, dtype=torch.float32)] * 2
    ),
    "more experts than there are": lambda: torch_npu.npu_moe_gating_top_k(zeros(3, EXPERTS), 9),
    "renormalised softmax": lambda: torch_npu.npu_moe_gating_top_k(zeros(3, EXPERTS), 2, renorm=1),
    "default cache layout": lambda: scatter(cache_mode="PA_NZ"),
    "slots of floats": lambda: scatter(slot_mapping=zeros(TOKENS)),
    "slots of fewer tokens": lambda: scatter(slot_mapping=zeros(3, dtype=I32)),
    "keys that are a view": lambda: scatter(key=zeros(TOKENS, 2 * HEADS, HEAD)[:, ::2]),
    "block table of int64": lambda: attend(block_table=zeros(SEQS, 1, dtype=I64)),
    "cache in four dimensions": lambda: attend(key=zeros(*CACHE), value=zeros(*CACHE)),
    "no mask": lambda: attend(atten_mask=None),
    "mask of one dimension less": lambda: attend(atten_mask=zeros(1024, 1024, dtype=I8)),
    "mask of floats": lambda: attend(atten_mask=zeros(2048, 2048)),
    "no sparse mode": lambda: attend(sparse_mode=0),
    "query lengths that are no totals": lambda: attend(actual_seq_lengths=[TOKENS // SEQS] * SEQS),
    "totals of keys": lambda: attend(actual_seq_lengths_kv=[100, 200, 300, 400, 500]),
    "fewer keys than queries": lambda: attend(actual_seq_lengths_kv=[1] * SEQS),
    "other number of heads": lambda: attend(num_heads=1),
    "block size 16": lambda: attend(
        key=zeros(BLOCKS, 16, HEADS * HEAD), value=zeros(BLOCKS, 16, HEADS * HEAD), block_size=16
    ),
    "head size 64": lambda: attend(
        query=zeros(TOKENS, HEADS, 64), key=zeros(BLOCKS, 128, 128), value=zeros(BLOCKS, 128, 128)
    ),
    "expert numbers of int64": lambda: route(expert_idx=zeros(TOKENS, TOP_K, dtype=I64)),
    "totals instead of counts": lambda: route(expert_tokens_num_type=0),
    "active_num of the tokens": lambda: route(active_num=TOKENS),
    "weights that are not prepared": lambda: multiply(zeros(EXPERTS, WIDTH, HIDDEN).transpose(1, 2)),
    "weights [E, N, K]": lambda: multiply(zeros(EXPERTS, WIDTH, HIDDEN)),
    "counts of int32": lambda: multiply(group_list=zeros(EXPERTS, dtype=I32)),
    "counts of fewer experts": lambda: multiply(group_list=zeros(EXPERTS - 1, dtype=I64)),
    "no group type": lambda: multiply(group_type=None),
    "weights of other tokens": lambda: combine(probs=zeros(TOKENS, TOP_K - 1)),
    "row numbers of int64": lambda: combine(sorted_indices=zeros(TOKENS * TOP_K, dtype=I64)),
}
# What only values show.
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "slot beyond the cache": (
        lambda: scatter(slot_mapping=torch.arange(TOKENS, dtype=I32, device="npu:0") + BLOCKS * 128 - 1),
        "slots beyond",
    ),
    "one slot twice": (lambda: scatter(slot_mapping=zeros(TOKENS, dtype=I32)), "the same slot"),
    "mask below the diagonal": (lambda: attend(atten_mask=zeros(2048, 2048, dtype=I8) + 1), "above the diagonal"),
    "block that there is not": (lambda: attend(block_table=zeros(SEQS, 1, dtype=I32) + BLOCKS), "leaves the cache"),
    "more rows than there are": (lambda: multiply(group_list=zeros(EXPERTS, dtype=I64) + TOKENS), "there are 40"),
    "expert that there is not": (lambda: route(expert_idx=zeros(TOKENS, TOP_K, dtype=I32) + 8), "there is not"),
    "one row twice": (lambda: combine(sorted_indices=zeros(TOKENS * TOP_K, dtype=I32)), "each row once"),
}


@contextmanager
def fake() -> Iterator[None]:
    with FakeTensorMode(), ContractMode():
        yield


@pytest.mark.parametrize("name", GOOD)
def test_documented_calls_are_taken(name: str) -> None:
    """Also without values, where the results have the same form."""
    real = forms(GOOD[name]())
    with fake():
        assert forms(GOOD[name]()) == real


def forms(results: object) -> list[tuple[torch.Size, torch.dtype]]:
    return [(result.shape, result.dtype) for result in tree_leaves(results) if isinstance(result, Tensor)]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_calls_are_refused_with_tensors_and_without(name: str) -> None:
    with pytest.raises((ContractError, RuntimeError)):
        BROKEN[name]()
    with fake(), pytest.raises((ContractError, RuntimeError)):
        BROKEN[name]()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ContractError, match=message):
        call()


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(ContractError, match="does not know this operator"):
        torch_npu.npu_linear(zeros(2, 2), zeros(2, 2))


def test_a_tensor_of_the_host_is_refused() -> None:
    with pytest.raises(RuntimeError):
        torch_npu.npu_swiglu(torch.zeros(2, 2, dtype=F16), -1) + zeros(2, 1)
    with pytest.raises(RuntimeError, match="on the host"):
        zeros(2, 2) + torch.zeros(2, 2)


def test_copies_and_waits_are_counted() -> None:
    x = torch.ones(4).pin_memory().to("npu:0", non_blocking=True)
    assert counts.COPIES == {"to_device": 1} and not counts.waits()
    y = (x + x).sum()
    assert not counts.waits() and counts.OPERATORS["aten::add.Tensor"] == 1
    assert y.item() == 8 and x.cpu().tolist() == [1.0] * 4
    torch.ones(4).to("npu:0")
    torch.ones(4).to("npu:0", non_blocking=True)
    torch.npu.synchronize()
    assert counts.COPIES == {"to_device": 3, "to_host": 2}
    assert counts.waits() == {
        "item": 1,
        "copy to the host": 1,
        "blocking copy to the device": 1,
        "copy from memory that is not pinned": 1,
        "synchronize": 1,
    }


def test_memory_is_bounded_and_never_clean() -> None:
    assert 0xA5 in torch.empty(1 << 26, dtype=torch.uint8, device="npu:0")[::4096].cpu()
    free, total = torch.npu.mem_get_info()
    assert 0 < free <= total == 4 << 30
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(total, dtype=torch.uint8, device="npu:0")


def test_devices_are_apart() -> None:
    assert torch.npu.device_count() == 8
    x = torch.ones(3, device="npu:5")
    assert (x + 1).device == torch.device("npu", 5)
