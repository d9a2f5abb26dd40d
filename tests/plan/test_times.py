"""The roofline times of steps: the short trace against the whole model's, the steps of prompts, figures by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.graph import meta_model, meta_step, trace
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.ops.cost import Cost
from atb_models.plan.chips import load_chips
from atb_models.plan.times import BATCHES, PAIRS, Step, StepCosts, pairs_within, prefill_steps, price, roofline_cells
from tests.plan.test_roofline import CHIP


@pytest.fixture
def config(demo: Path) -> ModelConfig:
    ops.bind("cpu")
    return load_model_config(demo, log=False)


@pytest.mark.parametrize("moe", [(False, True, True, True), (True, False, True, False), (True,) * 4, (False,) * 4])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "step",
    [
        Step((1,) * 3, (40, 700, 200), 3),
        Step((300, 212), (900, 212), 2),
        Step((128,), (128,), 1),
    ],
)
def test_a_step_costs_what_the_whole_models_trace_says(
    config: ModelConfig, moe: tuple[bool, ...], ranks: int, step: Step
) -> None:
    model = replace(config, moe_layers=moe)
    traced = trace(meta_model(model, torch.float16, ranks), meta_step(step.query_lens, step.kv_lens, 128))
    works = StepCosts(model, torch.float16, ranks).works(step)
    assert sum(work.calls for work in works) == len(traced.nodes)
    total = sum((work.cost * work.calls for work in works), Cost())
    for part in ("flops", "read", "written", "sent"):
        assert getattr(total, part) == pytest.approx(getattr(traced.cost, part), rel=1e-12), part


@pytest.mark.parametrize("isa", ["", "reference"])
@pytest.mark.parametrize(("quantize", "of_int8"), [("w8a8_dynamic", True), ("w8a16", False)])
def test_products_of_int8_activations_have_the_rate_of_int8(
    demo: Path, monkeypatch: pytest.MonkeyPatch, isa: str, quantize: str, of_int8: bool
) -> None:
    """Also within the sublayers that the library serves whole, whose rows come as floats."""
    monkeypatch.setenv("ATB_CPU_ISA", isa) if isa else monkeypatch.delenv("ATB_CPU_ISA", raising=False)
    ops.bind("cpu")
    works = StepCosts(load_model_config(demo, log=False), torch.float16, 1, quantize).works(Step((64,), (64,), 1))
    assert ops.feed_forward_sublayer.is_served == (not isa)
    flops = Counter[bool]()
    for work in works:
        flops[work.arithmetic.dtype == torch.int8] += int(work.cost.flops * work.calls)
    assert (flops[True] > 5 * flops[False]) if of_int8 else not flops[True]


def test_a_chunk_that_ends_no_prompt_pays_for_no_logits(config: ModelConfig) -> None:
    costs = StepCosts(config, torch.float16, 2)
    ending, chunk = (costs.works(Step((64,), (64,), logits)) for logits in (1, 0))
    reads = [sum(work.cost.read * work.calls for work in works) for works in (ending, chunk)]
    assert reads[0] - reads[1] >= 2 * config.vocab_size // 2 * config.hidden_size  # half of the head in 16 bits
    # nor for the last layer's feed-forward
    assert sum(work.calls for work in ending if work.cost.sent) == 2 + sum(w.calls for w in chunk if w.cost.sent)


def test_prompts_are_read_in_steps_within_the_budget() -> None:
    assert prefill_steps(5, 2, 4) == {
        Step((4,), (4,), 0): 1,
        Step((1, 3), (5, 3), 1): 1,
        Step((2,), (5,), 1): 1,
    }
    assert prefill_steps(2, 5, 4) == {Step((2, 2), (2, 2), 2): 2, Step((2,), (2,), 1): 1}
    steps = prefill_steps(2048, 64, 1000)
    assert sum(n * sum(step.query_lens) for step, n in steps.items()) == 2048 * 64
    assert sum(n * step.logits for step, n in steps.items()) == 64
    assert max(sum(step.query_lens) for step in steps) == 1000


@pytest.mark.parametrize(
    ("prompt", "batch", "budget"), [(6, 7, 4), (6, 8, 4), (5, 9, 1), (4, 5, 8), (4, 5, 100), (7, 3, 5)]
)
def test_equal_steps_are_counted_as_if_one_by_one(prompt: int, batch: int, budget: int) -> None:
    rows = [(sequence, place) for sequence in range(batch) for place in range(prompt)]
    wanted: Counter[Step] = Counter()
    for start in range(0, len(rows), budget):
        taken = rows[start : start + budget]
        queries = Counter(sequence for sequence, _ in taken)
        kv = {sequence: place + 1 for sequence, place in taken}
        wanted[Step(tuple(queries.values()), tuple(kv.values()), list(kv.values()).count(prompt))] += 1
    assert prefill_steps(prompt, batch, budget) == wanted


def test_pairs_beyond_the_positions_are_left_out(config: ModelConfig) -> None:
    assert pairs_within(4096) == list(PAIRS) and pairs_within(4095) == list(PAIRS[1:])
    assert not roofline_cells(replace(config, max_position_embeddings=511), torch.float16, 1, 2048, [CHIP])["small"]


def test_times_grow_with_the_batch_and_the_length(config: ModelConfig) -> None:
    cells = roofline_cells(config, torch.float16, 2, 512, [CHIP])["small"]
    assert Counter((cell.prompt, cell.answer) for cell in cells) == dict.fromkeys(PAIRS, len(BATCHES))
    for pair in PAIRS:
        row = [cell for cell in cells if (cell.prompt, cell.answer) == pair]
        assert [cell.batch for cell in row] == list(BATCHES)
        for small, large in zip(row, row[1:], strict=False):
            assert small.first_token.total < large.first_token.total
            assert small.per_token.total < large.per_token.total
            assert small.tokens_per_second <= large.tokens_per_second
            assert large.per_token.total >= max(large.per_token.compute, large.per_token.memory)
    longest, *_, shortest = (cell for cell in cells if cell.batch == 8)
    assert longest.per_token.total > shortest.per_token.total


def test_a_token_of_the_real_model_by_hand(shared: Path) -> None:
    ops.bind("cpu")
    config = load_model_config(shared / "headers" / "deepseek-moe-16b-base", log=False)
    h200 = load_chips()["H200"]
    cell = roofline_cells(config, torch.float16, 1, 2048, [h200])["H200"][0]
    assert (cell.prompt, cell.answer, cell.batch) == (2048, 2048, 1)
    attention = 28 * 4 * 2048 * 2048
    experts = 27 * (6 * 3 * 2048 * 1408 + 3 * 2048 * 2816)  # six of the 64, and the shared ones
    dense, head = 3 * 2048 * 10944, 102400 * 2048
    router = 27 * 64 * 2048 * 4
    cached = 28 * 2 * 3072 * 2048 * 2
    seconds = (2 * (attention + experts + dense + head) + router + cached) / 4.8e12
    assert seconds < cell.per_token.total < 1.002 * seconds  # activations are the rest
    assert cell.per_token.communication == 0 and cell.per_token.compute < 0.01 * seconds
    assert cell.tokens_per_second == pytest.approx(1 / cell.per_token.total)


def test_communication_counts_every_collective(config: ModelConfig) -> None:
    step = Step((1,), (100,), 1)
    times = price(StepCosts(config, torch.float16, 4).works(step), CHIP, 4)
    reduced = 2 * config.num_hidden_layers * 2 * 3 / 4 * config.hidden_size * 2  # two a layer, twice 3 of 4 parts
    gathered = 3 * config.vocab_size // 4 * 4  # float32 logits of the three others
    calls = 2 * config.num_hidden_layers + 1
    assert times.communication == pytest.approx(calls * 50e-6 + (reduced + gathered) / 4e9, rel=0.1)
