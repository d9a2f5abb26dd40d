"""What is said of a model that does not fit: every figure of it, and that the remedies do fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import ops
from atb_models.limits import Limits
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.ops import table
from atb_models.plan import capacity
from atb_models.plan.capacity import Deployment, Shortage
from atb_models.plan.memory import RankMemory
from atb_models.wording import GIB, gib

LIMITS = Limits(max_batch_size=8, max_prefill_tokens=2048, max_seq_len=512, block_size=128)


@pytest.fixture(autouse=True, scope="module")
def traced_once() -> Iterator[None]:
    """The tests ask for the memory of the same deployments again and again, each time with a trace."""
    known: dict[str, RankMemory] = {}
    trace = capacity.rank_memory

    def rank_memory(*deployment: Any) -> RankMemory:
        key = repr(deployment)
        if key not in known:
            known[key] = trace(*deployment)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "rank_memory", rank_memory)
        yield


@pytest.fixture
def wide(demo: Path) -> ModelConfig:
    """A model of 2.7 GiB in fp16 with 24 layers."""
    ops.bind("cpu")
    return replace(
        load_model_config(demo),
        hidden_size=1024,
        head_dim=128,
        moe_intermediate_size=1024,
        shared_intermediate_size=2048,
        num_hidden_layers=24,
        moe_layers=(False, *[True] * 23),
    )


def shortage(
    deployment: Deployment,
    usable: int,
    *,
    blocks: int = 1,
    shared: bool = True,
    overrides: dict[str, Any] | None = None,
) -> Shortage:
    """Ranks that share one memory, or have `usable` bytes each on at most 4 devices."""

    def usable_by(ranks: int) -> int | None:
        if shared:
            return usable * deployment.size // ranks
        return usable if ranks <= 4 else None

    memory = deployment.memory_within(usable, blocks)
    return Shortage(deployment, memory, usable, blocks, usable_by, "of a test", overrides or {})


def size_in(text: str) -> float:
    """The last size in a line, bytes."""
    number, unit = re.findall(r"([\d.]+) (GiB|MiB)", text)[-1]
    return float(number) * (GIB if unit == "GiB" else 1 << 20)


def test_breakdown(wide: ModelConfig) -> None:
    deployment = Deployment(wide, torch.float16, 2, LIMITS)
    memory = deployment.memory_within(GIB // 2, 1)
    lines = shortage(deployment, GIB // 2).message().splitlines()
    needed = memory.weights + memory.activations + memory.kv_block
    assert lines[0] == (f"the model does not fit: each of 2 ranks needs {gib(needed)} and may use 0.50 GiB of a test")
    assert lines[1].split() == ["weights", *gib(memory.weights).split()]
    assert gib(memory.activations) in lines[2] and "2048 prompt tokens and 8 sequences" in lines[2]
    assert "left         0.0 MiB" in lines[3] and gib(memory.kv_block) in lines[3]
    assert gib(4 * memory.kv_block) in lines[4] and "for 512" in lines[4]
    assert [line[:5] for line in lines[6:]] == ["  1. ", "  2. ", "  3. "]
    assert "-" not in re.sub(r"--\w+", "", "\n".join(lines[:5]))  # no negative figure


def test_less_precision_is_the_first_remedy(wide: ModelConfig) -> None:
    found = shortage(Deployment(wide, torch.float32, 1, LIMITS), 4 * GIB)
    assert next(found.remedies()).startswith("--dtype fp16: a rank needs 2.")


def test_more_ranks_help_where_each_has_its_own_device(wide: ModelConfig) -> None:
    deployment = Deployment(wide, torch.float16, 1, LIMITS)
    usable = 2 * GIB
    remedy = next(shortage(deployment, usable, shared=False).remedies())
    assert remedy.startswith("--tp 2: a rank needs ") and size_in(remedy) <= usable
    assert not any(remedy.startswith("--tp") for remedy in shortage(deployment, usable, shared=True).remedies())


def test_fewer_ranks_help_where_they_share_a_host(wide: ModelConfig) -> None:
    one = Deployment(wide, torch.float16, 1, LIMITS).memory()
    usable = one.weights + one.activations + one.kv_block  # enough for one rank, an eighth of it for each of eight
    remedies = list(shortage(Deployment(wide, torch.float16, 8, LIMITS), usable // 8 + 1).remedies())
    assert any(remedy.startswith("--tp 1: ") for remedy in remedies)


def test_smaller_steps_fewer_blocks_and_layers(wide: ModelConfig) -> None:
    deployment = Deployment(wide, torch.float16, 1, LIMITS)
    memory = deployment.memory()
    usable = memory.weights + memory.activations + 2 * memory.kv_block
    found = shortage(deployment, usable, blocks=3, overrides={"rope_theta": 5.0})
    blocks, steps, int8, cache, layers, *_ = found.remedies()
    tokens = int(re.findall(r"--max_prefill_tokens (\d+)", steps)[0])
    limits = replace(LIMITS, max_prefill_tokens=tokens)
    smaller = replace(deployment, limits=limits).memory()
    assert "--max_batch_size 8" in steps  # the batch is not given up before the prompts' share of a step
    assert smaller.weights + smaller.activations + 3 * smaller.kv_block <= usable
    assert blocks.startswith("--kv_blocks 2: ")
    assert int8.startswith("--quantize w8a16: a rank needs 1.") and size_in(int8) < 0.6 * usable
    assert cache.startswith("--kv_dtype int8: a rank needs ")
    assert size_in(cache) == pytest.approx(replace(deployment, kv_dtype=torch.int8).memory().needed(3), rel=0.01)
    overrides = re.findall(r"'(.*)'", layers)[0]
    assert json.loads(overrides) == {"rope_theta": 5.0, "num_hidden_layers": 23} and size_in(layers) <= usable


def test_int8_weights_are_no_remedy_where_they_are_there_or_not_served(
    wide: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(wide, torch.float16, 1, LIMITS)
    plain, int8 = deployment.memory(), replace(deployment, quantize="w8a16").memory()
    assert int8.weights < 0.55 * plain.weights
    usable = int8.weights + int8.activations + int8.kv_block
    assert any(remedy.startswith("--quantize w8a16: ") for remedy in shortage(deployment, usable).remedies())
    remedies = list(shortage(replace(deployment, quantize="w8a16"), usable // 2).remedies())
    assert remedies and not any("quantize" in remedy for remedy in remedies)
    monkeypatch.setattr(table, "_bound", ("npu", table.Backend({}, quantized=False)))
    remedies = list(shortage(deployment, usable).remedies())
    assert remedies and not any("quantize" in remedy for remedy in remedies)


def test_an_int8_cache_is_no_remedy_where_it_is_there(wide: ModelConfig) -> None:
    deployment = Deployment(wide, torch.float16, 1, LIMITS)
    int8 = replace(deployment, kv_dtype=torch.int8)
    usable = int8.memory().needed(64)
    assert "--kv_dtype int8" in shortage(deployment, usable, blocks=64).message()
    remedies = list(shortage(int8, usable - 1, blocks=64).remedies())
    assert remedies and not any("kv_dtype" in remedy for remedy in remedies)


def test_memory_is_named_where_nothing_else_helps(wide: ModelConfig) -> None:
    deployment = Deployment(wide, torch.float16, 1, LIMITS)
    remedies = list(shortage(deployment, -GIB).remedies())
    now, least, full = (float(remedy.split()[0]) for remedy in remedies)
    assert least <= now < full and f"{now + 1:.2f} GiB more than now" in remedies[0]  # what is kept aside lacks too
    assert "--max_prefill_tokens 64 --max_batch_size 1 --kv_blocks 1" in remedies[1]
    assert "8 sequences of 512 tokens" in remedies[2]
    assert "may use 0.0 MiB" in shortage(deployment, -GIB).message()


def test_blocks_that_do_not_fit_are_not_blamed_on_the_model(wide: ModelConfig) -> None:
    found = shortage(Deployment(wide, torch.float16, 1, LIMITS), 4 * GIB, blocks=10**6)
    assert found.message().startswith("--kv_blocks 1000000 does not fit: it needs ")
    assert next(found.remedies()).startswith("--kv_blocks ")


def test_no_more_ranks_than_devices(wide: ModelConfig) -> None:
    deployment = Deployment(wide, torch.float16, 2, LIMITS)
    assert next(shortage(deployment, GIB, shared=False).remedies()).startswith("--tp 3: ")
    assert not any(r.startswith("--tp") for r in shortage(deployment, GIB // 3, shared=False).remedies())


def test_sequences_longer_than_the_pool_cost_nothing(wide: ModelConfig) -> None:
    """Positions that no KV cache can hold here: the largest step ends where the cache does."""
    long = Deployment(wide, torch.float16, 1, replace(LIMITS, max_seq_len=1 << 20))
    usable = 4 * GIB
    memory = long.memory_within(usable)
    assert memory.activations < long.memory().activations / 4
    held = memory.kv_blocks(usable) * memory.block_size
    assert memory.kv_blocks(usable) > 0
    exact = replace(long, limits=replace(long.limits, max_seq_len=held)).memory()
    assert exact.activations <= memory.activations
    asked = long.memory_within(usable, 4)
    assert asked.activations <= memory.activations
