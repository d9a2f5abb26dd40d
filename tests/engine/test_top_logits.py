"""Which steps take only the greatest logits of each row, and that their tokens are those of all logits."""

from __future__ import annotations

import pytest
from fake_runner import VOCAB, FakeRunner, fake_engine, logits_of, states_of
from torch import Tensor

from atb_models.engine.engine import Engine
from atb_models.engine.scheduler import Row
from atb_models.sampling_params import SamplingParams

GREEDY = SamplingParams(max_tokens=5)
FEW = [GREEDY, *(SamplingParams(max_tokens=5, temperature=0.8, top_k=k, top_p=0.9, seed=k) for k in (1, 7, 64))]
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [9, 3]]


class Spy(FakeRunner):
    """`asked`: how many of the greatest logits each step was asked for."""

    def __init__(self, *sizes: int, gives: bool = True) -> None:
        super().__init__(*sizes)
        self.gives_top_logits = gives
        self.asked: list[int] = []

    def run(self, rows: list[Row], top_logits: int = 0) -> Tensor:
        self.asked.append(top_logits)
        return super().run(rows, top_logits)


def spied(*, gives: bool = True, **options: object) -> tuple[Engine, Spy]:
    engine = fake_engine(**options)  # type: ignore[arg-type]
    blocks = engine.scheduler.block_manager
    engine.runner = runner = Spy(blocks.num_blocks, blocks.block_size, gives=gives)
    return engine, runner


def answers(engine: Engine, params: list[SamplingParams], **request: bool) -> dict[int, list[int]]:
    for index, one in enumerate(params):
        engine.add_request(PROMPTS[index % len(PROMPTS)], one, index=index, **request)
    outputs: dict[int, list[int]] = {}
    while engine.has_work():
        outputs |= {output.index: output.token_ids for output in engine.step()}
        engine.scheduler.check()
    return outputs


@pytest.mark.parametrize(
    ("params", "count"), [([GREEDY], 1), ([GREEDY] * 4, 1), (FEW, 64), ([FEW[1]], 64)], ids=["one", "batch", "mix", "k"]
)
def test_the_tokens_are_those_of_all_logits(params: list[SamplingParams], count: int) -> None:
    """In chunks of prompts and with preemption as well."""
    all_logits, plain = spied(gives=False)
    expected = answers(all_logits, params)
    assert set(plain.asked) == {0}
    for options in ({}, {"prefill": 3}, {"num_blocks": 10, "prefix_cache": False}):
        engine, runner = spied(**options)
        assert answers(engine, params) == expected
        assert set(runner.asked) <= {1, count} and count in runner.asked


@pytest.mark.parametrize(
    "other",
    [
        SamplingParams(max_tokens=5, temperature=1.0, seed=1),
        SamplingParams(max_tokens=5, logprobs=2),
        SamplingParams(max_tokens=5, presence_penalty=0.5),
        SamplingParams(max_tokens=5, logit_bias={3: 1}),
        SamplingParams(max_tokens=5, prompt_logprobs=1),
    ],
    ids=str,
)
def test_a_request_that_needs_all_logits_has_them_for_as_long_as_it_runs(other: SamplingParams) -> None:
    long = SamplingParams(max_tokens=9)
    all_logits, _ = spied(gives=False)
    expected = answers(all_logits, [other, long])
    engine, runner = spied()
    assert answers(engine, [other, long]) == expected
    needs_all = 1 if other.prompt_logprobs else 5
    assert runner.asked == [0] * needs_all + [1] * (9 - needs_all)


def test_logits_that_somebody_looks_at_are_all_there() -> None:
    engine, runner = spied()
    seen: list[tuple[int, ...]] = []
    engine.on_step = lambda rows, logits_LV, tokens: seen.append(tuple(logits_LV.shape))
    answers(engine, [GREEDY])
    assert seen == [(1, VOCAB)] * 5 and set(runner.asked) == {0}
    engine, runner = spied()
    seq = engine.add_request([5, 6, 7], GREEDY, want_prompt_logits=True)
    engine.step()
    assert [part.tolist() for part in seq.prompt_logits[0]] == [
        logits_of(states_of([5, 6, 7][:stop])).tolist() for stop in (1, 2, 3)
    ]
    assert runner.asked == [0]


def test_a_hook_that_is_set_between_the_halves_begins_with_the_next_step() -> None:
    engine, runner = spied()
    seen: list[Tensor] = []
    engine.add_request([5, 6], SamplingParams(max_tokens=3))
    engine.launch()
    engine.on_step = lambda rows, logits_LV, tokens: seen.append(logits_LV)
    engine.collect()
    assert not seen
    engine.step()
    assert runner.asked == [1, 0] and [tuple(one.shape) for one in seen] == [(1, VOCAB)]
