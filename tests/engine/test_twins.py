"""Requests with equal prompts that are admitted to the same step: computed once, answered as each would be alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_runner import VOCAB, FakeRunner, alone, fake_engine

from atb_models import LLM
from atb_models.engine.engine import Engine
from atb_models.engine.scheduler import Row
from atb_models.engine.sequence import Sequence, Status
from atb_models.sampling_params import SamplingParams

PROMPT = [(7 * i + i * i) % VOCAB for i in range(18)]  # 4 whole blocks of 4 tokens, and 2 tokens
WHOLE = 16
PARAMS = SamplingParams(max_tokens=5)


class Computed:
    """Counts the prompt tokens of all steps, and notes who was in each."""

    def __init__(self) -> None:
        self.tokens = 0
        self.steps: list[list[int]] = []

    def __call__(self, rows: list[Row]) -> None:
        self.tokens += sum(row.num_tokens for row in rows if row.is_prefill)
        self.steps.append([row.seq.seq_id for row in rows])


@pytest.fixture
def computed() -> Computed:
    return Computed()


def add(engine: Engine, *prompts: list[int], params: SamplingParams = PARAMS) -> list[Sequence]:
    return [engine.add_request(prompt, params, index=index) for index, prompt in enumerate(prompts)]


def drain(engine: Engine) -> None:
    while engine.has_work():
        engine.step()
        engine.scheduler.check()
    assert engine.scheduler.block_manager.num_free == engine.scheduler.block_manager.num_blocks


def answers(seqs: list[Sequence]) -> list[list[int]]:
    return [seq.output_token_ids for seq in seqs]


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("blocks", [64, 30])
def test_equal_prompts_of_a_step_are_computed_once(count: int, blocks: int, computed: Computed) -> None:
    """The first computes all, each other what is behind the last whole block: in the same step, not in a later one."""
    engine = fake_engine(blocks, prefill=200, look=computed)
    seqs = add(engine, *[PROMPT] * count)
    drain(engine)
    assert computed.tokens == len(PROMPT) + (count - 1) * (len(PROMPT) - WHOLE)
    assert computed.steps[0] == [seq.seq_id for seq in seqs] and len(computed.steps) == 5
    assert answers(seqs) == [alone(PROMPT, 5)] * count
    assert [seq.num_cached_tokens for seq in seqs] == [0] + [WHOLE] * (count - 1)
    assert engine.counts()["prefix_hit_tokens"] == (count - 1) * WHOLE


def test_they_share_their_blocks_at_once() -> None:
    """Eight that fit only because they share."""
    engine = fake_engine(4 + 8 * 2, prefill=200)
    seqs = add(engine, *[PROMPT] * 8)
    engine.step()
    assert all(seq.status is Status.DECODE for seq in seqs) and engine.counts()["preemptions"] == 0
    assert len({tuple(seq.block_table[:4]) for seq in seqs}) == 1
    drain(engine)
    assert answers(seqs) == [alone(PROMPT, 5)] * 8


@pytest.mark.parametrize("prefill", [1, 3, 4, 7, 17, 18, 19, 20, 21])
def test_a_prompt_in_chunks_is_computed_once(prefill: int, computed: Computed) -> None:
    engine = fake_engine(64, prefill=prefill, look=computed)
    seqs = add(engine, PROMPT, PROMPT, PROMPT)
    drain(engine)
    assert computed.tokens == len(PROMPT) + 2 * (len(PROMPT) - WHOLE)
    assert answers(seqs) == [alone(PROMPT, 5)] * 3


def test_prompts_that_begin_alike_share_the_beginning(computed: Computed) -> None:
    engine = fake_engine(64, prefill=200, look=computed)
    prompts = [PROMPT[:9] + [tail] * 5 for tail in (1, 2, 3)]
    seqs = add(engine, *prompts)
    drain(engine)
    assert computed.tokens == 14 + 2 * (14 - 8)
    assert answers(seqs) == [alone(prompt, 5) for prompt in prompts]


def test_nobody_waits_for_a_twin(computed: Computed) -> None:
    """Pairs of twins and others between them: all are admitted to the first step, in their order."""
    engine = fake_engine(200, prefill=500, batch=16, look=computed)
    prompts = [[i] * 9 for i in (1, 1, 2, 3, 3, 3, 4, 5, 5)]
    seqs = add(engine, *prompts)
    drain(engine)
    assert computed.steps[0] == [seq.seq_id for seq in seqs]
    assert answers(seqs) == [alone(prompt, 5) for prompt in prompts]


def test_without_the_prefix_cache_all_are_computed(computed: Computed) -> None:
    engine = fake_engine(64, prefill=200, prefix_cache=False, look=computed)
    seqs = add(engine, PROMPT, PROMPT)
    drain(engine)
    assert computed.tokens == 2 * len(PROMPT) and answers(seqs) == [alone(PROMPT, 5)] * 2


def test_one_whose_prompt_is_scored_computes_it_and_lends_it(computed: Computed) -> None:
    engine = fake_engine(64, prefill=200, look=computed)
    scored = SamplingParams(max_tokens=5, prompt_logprobs=0)
    seqs = [engine.add_request(PROMPT, params) for params in (scored, PARAMS, scored)]
    drain(engine)
    assert computed.tokens == 2 * len(PROMPT) + len(PROMPT) - WHOLE
    assert answers(seqs) == [alone(PROMPT, 5)] * 3


@pytest.mark.parametrize("victim", [0, 1])
def test_an_abort_while_the_step_runs_leaves_the_twin_alone(victim: int) -> None:
    engine = fake_engine(64, prefill=200)
    seqs = add(engine, PROMPT, PROMPT)
    assert engine.launch()
    engine.abort(seqs[victim].seq_id)
    engine.collect()
    engine.scheduler.check()
    drain(engine)
    assert seqs[1 - victim].output_token_ids == alone(PROMPT, 5)


# ----------------------------------------------------------------- a step that fails: nobody may find what was not run


class Failing(FakeRunner):
    """Fails in its steps of these numbers, before anything is computed, after the first row, or after all of them."""

    def __init__(self, *args: object, steps: set[int], rows: int, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.failing, self.rows, self.tries = steps, rows, 0

    def run(self, rows: list[Row], top_logits: int = 0) -> object:  # type: ignore[override]
        self.tries += 1
        if self.tries not in self.failing:
            return super().run(rows, top_logits)
        if self.rows:
            super().run(rows[: self.rows], top_logits)
        raise RuntimeError("the device failed")


def failing_engine(steps: set[int], rows: int) -> Engine:
    engine = fake_engine(64, prefill=40)
    engine.runner = Failing(64, 4, steps=steps, rows=rows)
    return engine


@pytest.fixture(params=[0, 1, 100])
def rows_run(request: pytest.FixtureRequest) -> Iterator[int]:
    yield request.param


@pytest.mark.parametrize("steps", [{1}, {1, 2}, {2}, {3, 5}])
def test_a_failed_step_is_run_again(steps: set[int], rows_run: int) -> None:
    engine = failing_engine(steps, rows_run)
    prompts = [PROMPT, PROMPT, PROMPT[:12] + [9] * 9, PROMPT]
    seqs = add(engine, *prompts)
    while engine.has_work():
        with suppress(RuntimeError):
            engine.step()
            engine.scheduler.check()
    assert answers(seqs) == [alone(prompt, 5) for prompt in prompts]


@pytest.mark.parametrize("victims", [[0], [1], [0, 1], [0, 1, 2]])
def test_what_a_failed_step_did_not_compute_is_not_found_later(victims: list[int], rows_run: int) -> None:
    """Also if who was to compute it is gone before the next step."""
    engine = failing_engine({1}, rows_run)
    seqs = add(engine, PROMPT, PROMPT, PROMPT)
    with pytest.raises(RuntimeError, match="the device failed"):
        engine.step()
    for victim in victims:
        engine.abort(seqs[victim].seq_id)
    late = add(engine, PROMPT)
    drain(engine)
    staying = [seq for index, seq in enumerate(seqs) if index not in victims]
    assert answers(staying + late) == [alone(PROMPT, 5)] * (len(staying) + 1)


def test_a_hook_that_fails_does_no_harm() -> None:
    """The step has run, but nobody knows how far its tokens came."""
    engine = fake_engine(64, prefill=200)
    calls = iter([True, False, True])

    def hook(*_: object) -> None:
        if next(calls, False):
            raise ValueError("the user's own")

    engine.on_step = hook
    seqs = add(engine, PROMPT, PROMPT)
    while engine.has_work():
        with suppress(ValueError):
            engine.step()
    assert answers(seqs) == [alone(PROMPT, 5)] * 2


# ----------------------------------------------------------------------------------------------- counts, the real model


def test_a_preempted_request_does_not_count_its_own_blocks() -> None:
    """Prompts that share nothing: whatever they find again, nobody else had computed it."""
    engine = fake_engine(10, prefill=64)
    seqs = add(engine, *[[5 + i] * 9 for i in range(4)], params=SamplingParams(max_tokens=20))
    drain(engine)
    counts = engine.counts()
    assert counts["preemptions"] > 0 and counts["prefix_hit_tokens"] == 0
    assert [seq.num_cached_tokens for seq in seqs] == [0] * 4


def test_hits_are_the_sum_of_what_the_requests_found() -> None:
    engine = fake_engine(16, prefill=11)
    seqs = add(engine, *[PROMPT[: 5 + 3 * (i % 5)] for i in range(12)], params=SamplingParams(max_tokens=12))
    drain(engine)
    counts = engine.counts()
    assert counts["preemptions"] > 0
    assert 0 < counts["prefix_hit_tokens"] == sum(seq.num_cached_tokens for seq in seqs) < counts["prompt_tokens"]


def test_copies_of_an_input_are_computed_once(demo: Path) -> None:
    prompt = list(range(10, 330))
    with LLM(demo, device="cpu", dtype="fp32", kv_blocks=256, block_size=16, max_seq_len=512, max_batch_size=8) as llm:
        seen: list[int] = []
        llm.on_step = lambda rows, logits, tokens: seen.append(sum(row.num_tokens for row in rows if row.is_prefill))
        params = SamplingParams(max_tokens=6, ignore_eos=True)
        (single,) = llm.generate([prompt[:-1] + [9]], params)
        seen.clear()
        outputs = llm.generate([prompt] * 8, params)
        assert sum(seen) == 320 - 304 + 7 * 16, "304 tokens of the first were known, and of the others too"
        assert len({tuple(output.token_ids) for output in outputs}) == 1
        seen.clear()
        other = [token + 1000 for token in prompt]
        outputs = llm.generate([other] * 8, params)
        assert sum(seen) == 320 + 7 * 16 and [o.metrics["cached_tokens"] for o in outputs] == [0] + [304] * 7
    with LLM(demo, device="cpu", dtype="fp32", kv_blocks=256, block_size=16, prefix_cache=False) as llm:
        assert [o.token_ids for o in llm.generate([other] * 2, params)] == [o.token_ids for o in outputs[:2]]
        assert llm.generate([prompt[:-1] + [9]], params)[0].token_ids == single.token_ids
