"""The memory of a rank against counts by hand and against what a run takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models import LLM, SamplingParams, ops
from atb_models.engine.block_manager import BlockManager
from atb_models.engine.engine import Engine
from atb_models.engine.sampling.sampler import sample
from atb_models.engine.scheduler import Row, Scheduler
from atb_models.engine.sequence import Sequence
from atb_models.graph import meta_caches, meta_model, meta_step, trace
from atb_models.graph.memory import StorageMode
from atb_models.layers.parameter import Filling, fillings
from atb_models.layers.storage import Storage
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.weights.packer import packing_bytes
from atb_models.ops.native.library import active
from atb_models.plan.memory import (
    SAMPLING_BYTES,
    Limits,
    RankMemory,
    after_the_model,
    largest_step,
    one_of_each_layer,
    rank_memory,
)
from atb_models.plan.parameters import count_parameters
from tests.models.storages.schemes import HandMade

LIMITS = Limits(max_batch_size=4, max_prefill_tokens=64, max_seq_len=100, block_size=16)


@pytest.fixture
def config(demo: Path) -> ModelConfig:
    ops.bind("cpu")
    return load_model_config(demo)


def test_weights_and_kv_by_hand(config: ModelConfig) -> None:
    vocab, hidden, experts, width = 2496, 128, 16, config.moe_intermediate_size
    dense = 3 * hidden * config.intermediate_size
    moe = 3 * hidden * (experts * width + config.shared_intermediate_size)
    layer = 4 * hidden * hidden + 2 * hidden
    halves = 2 * vocab * hidden + hidden + 4 * layer + dense + 3 * moe
    memory = rank_memory(config, torch.float16, 1, LIMITS)
    assert memory.weights == 2 * halves + 4 * 3 * experts * hidden  # the router is float32
    assert memory.kv_per_token == 4 * 2 * hidden * 2 and memory.kv_block == 16 * memory.kv_per_token
    assert rank_memory(config, torch.float32, 4, LIMITS).kv_per_token == 4 * 2 * 32 * 4


def test_int8_weights_and_their_scales_by_hand(config: ModelConfig) -> None:
    """Embedding, head and norms stay as they are; a scale for each row, whatever a rank has of the row."""
    vocab, hidden, experts, width = 2496, 128, 16, config.moe_intermediate_size
    shared, dense = config.shared_intermediate_size, config.intermediate_size
    for ranks in (1, 4):
        mlps = dense + 3 * (experts * width + shared)  # widths of all layers together
        integers = (4 * 4 * hidden * hidden + 3 * hidden * mlps) // ranks
        scales = 4 * (3 * hidden // ranks + hidden) + 2 * mlps // ranks + hidden * (1 + 3 * (experts + 1))
        floats = 2 * (vocab * hidden + vocab // ranks * hidden + 9 * hidden) + 4 * 3 * experts * hidden
        memory = rank_memory(config, torch.float16, ranks, LIMITS, "w8a16")
        assert memory.weights == integers + 4 * scales + floats
        assert memory.kv_per_token == rank_memory(config, torch.float16, ranks, LIMITS).kv_per_token


@pytest.mark.parametrize("level", ["reference", "native"])
def test_int8_weights_are_held_as_planned(
    config: ModelConfig, demo: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters of a loaded model; where torch serves, an operation's floats are planned as its workspace."""
    monkeypatch.delenv("ATB_CPU_ISA", raising=False)
    if level == "reference":
        monkeypatch.setenv("ATB_CPU_ISA", level)
    elif active().level is None:
        pytest.skip("this CPU has no level of the library")
    ops.bind("cpu")
    planned = rank_memory(config, torch.float16, 1, LIMITS, "w8a16")
    with LLM(demo, device="cpu", quantize="w8a16", kv_blocks=2, max_seq_len=64) as llm:
        assert planned.weights == sum(parameter.nbytes for parameter in llm._runner.model.parameters())
    model = meta_model(config, torch.float16, quantize="w8a16")
    if level == "reference":
        assert planned.packing == 0
        decode = trace(model, meta_step([1], [1], 16))
        assert decode.peak_activation_bytes > (4 + 2) * 2 * config.intermediate_size * 128
    else:
        quantized = [filling for filling in fillings(model).values() if filling.weight.layout.quantized]
        assert len(quantized) == 2 * 4 + 2 + 3 * 4
        assert all(packing_bytes(filling) == math.prod(filling.weight.shape[-2:]) for filling in quantized)


@pytest.mark.parametrize("quantize", ["w4a16", "w8a8_dynamic"])
@pytest.mark.parametrize("level", ["reference", "native"])
def test_other_storages_are_held_as_planned(
    config: ModelConfig, demo: Path, level: str, quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 bits in half a byte with a scale for 128 inputs; and the ranks of a shard as one rank."""
    monkeypatch.delenv("ATB_CPU_ISA", raising=False)
    if level == "reference":
        monkeypatch.setenv("ATB_CPU_ISA", level)
    elif active().level is None:
        pytest.skip("this CPU has no level of the library")
    ops.bind("cpu")
    planned = rank_memory(config, torch.float16, 1, LIMITS, quantize)
    with LLM(demo, device="cpu", quantize=quantize, kv_blocks=2, max_seq_len=64) as llm:
        model = llm._runner.model
        assert planned.weights == sum(parameter.nbytes for parameter in model.parameters())
        weight = model.layers[0].attn.qkv.stored
    outputs, inputs = weight.shape
    if quantize == "w4a16":
        assert weight.nbytes == outputs * (inputs // 2 + 4 * inputs // 128)
        if level == "reference":
            assert planned.packing == max(math.prod(one.weight.shape[-2:]) for one in quantized(config, quantize))
    halves = [rank_memory(config, torch.float16, size, LIMITS, quantize).weights for size in (1, 2)]
    assert 0.5 < halves[1] / halves[0] < 0.8, "embedding and norms are on both ranks"


def test_a_mixed_checkpoint_is_planned_layer_by_layer(config: ModelConfig) -> None:
    """As if every layer were traced, though only one of each kind is."""
    ops.bind("reference")
    int8, static = Storage(8), Storage(8, activations="static")
    scheme = HandMade({
        "layers.2.self_attn.o_proj.weight": int8, "layers.1.mlp.experts.0.up_proj.weight": int8,
        "gate_proj.weight": Storage(4, 32), "up_proj.weight": Storage(4, 64), "down_proj.weight": static,
    })  # fmt: skip
    mixed = replace(config, scheme=scheme)
    whole = sum(filling.weight.nbytes for filling in fillings(meta_model(mixed, torch.float16)).values())
    floats = rank_memory(config, torch.float16, 1, LIMITS).weights
    assert rank_memory(mixed, torch.float16, 1, LIMITS).weights == whole < floats
    assert count_parameters(mixed) == count_parameters(config)


def quantized(config: ModelConfig, quantize: str) -> list[Filling]:
    every = fillings(meta_model(config, torch.float16, quantize=quantize)).values()
    return [filling for filling in every if filling.weight.layout.quantized]


def test_one_layer_of_each_kind_has_the_peak_of_all(config: ModelConfig) -> None:
    assert one_of_each_layer(config).moe_layers == (False, True, True)
    query_lens, kv_lens = largest_step(LIMITS)
    step = meta_step(query_lens, kv_lens, 16)
    peaks = [
        trace(model, step, meta_caches(model, 32, 16)).peak_activation_bytes
        for model in (meta_model(config, torch.float16, 2), meta_model(one_of_each_layer(config), torch.float16, 2))
    ]
    assert peaks[0] == peaks[1] > 0


def test_prompt_logits_are_counted_as_far_as_a_step_has_prompt_tokens(config: ModelConfig) -> None:
    few, all_64, more = (
        rank_memory(config, torch.float16, 1, replace(LIMITS, max_prompt_logits=count)).activations
        for count in (1, 64, 1000)
    )
    assert few < all_64 == more >= 2 * after_the_model(4, 64, config.vocab_size)


@pytest.mark.parametrize("greedy", [True, False])
def test_sampling_takes_what_is_planned(config: ModelConfig, greedy: bool) -> None:
    """Against the storages that sampling makes at its worst: top_p over flat logits, penalties, log probabilities."""
    batch, vocab = 8, 30_000
    params = SamplingParams(max_tokens=2) if greedy else SamplingParams(
        max_tokens=2, temperature=100.0, top_p=0.9999, repetition_penalty=1.1, presence_penalty=0.1, logprobs=5, seed=1
    )  # fmt: skip
    sequences = [Sequence([1, 2, 3], params) for _ in range(batch)]
    logits = torch.randn(batch, vocab)
    mode = StorageMode([logits], lambda _: None)
    with mode:
        sample(logits, sequences)
    kept = mode.live / logits.numel()
    assert kept <= 0.1
    assert mode.peak / logits.numel() <= SAMPLING_BYTES


class Given:
    """A runner whose logits are known."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.gives_top_logits = logits, False

    def run(self, rows: list[Row], top_logits: int = 0) -> torch.Tensor:
        return self.logits[: sum(row.num_logits for row in rows)]


@pytest.mark.parametrize("sampled", [0, 4])
def test_prompt_logits_take_what_is_planned_and_leave_nothing(sampled: int) -> None:
    """Steps that score the tokens of two prompts beside so many sequences that sample; no logits are kept."""
    vocab, limits = 20_000, Limits(max_batch_size=6, max_prefill_tokens=64, max_seq_len=100, block_size=16)
    logits = torch.randn(limits.max_batch_size + 32, vocab)
    engine = Engine(Given(logits), Scheduler(BlockManager(42, 16), replace(limits, max_prompt_logits=32)))
    for prompt in range(sampled):
        engine.add_request([prompt], SamplingParams(max_tokens=9, temperature=100.0, top_p=0.9999, seed=1))
    engine.step()
    for prompt in range(2):
        engine.add_request([prompt, *range(40)], SamplingParams(max_tokens=9, prompt_logprobs=5))
    mode = StorageMode([logits], lambda _: None)
    with mode:
        engine.step()
    held = (sampled + 32) * vocab * 4
    assert mode.live < vocab and mode.peak + held <= 1.01 * after_the_model(sampled, 32, vocab)


@pytest.mark.parametrize(
    ("limits", "query_lens", "kv_lens"),
    [
        (LIMITS, [64, 1, 1, 1], [100] * 4),
        (replace(LIMITS, max_prefill_tokens=250), [100, 100, 50, 1], [100] * 4),
        (replace(LIMITS, max_prefill_tokens=1000), [100] * 4, [100] * 4),
        (replace(LIMITS, max_batch_size=1), [64], [100]),
    ],
)
def test_the_largest_step(limits: Limits, query_lens: list[int], kv_lens: list[int]) -> None:
    assert largest_step(limits) == (query_lens, kv_lens)


def test_blocks_that_fit() -> None:
    memory = RankMemory(weights=1000, activations=200, kv_per_token=2, block_size=16)
    assert [memory.kv_blocks(usable) for usable in (0, 1199, 1231, 1232, 1300)] == [0, 0, 0, 1, 3]
