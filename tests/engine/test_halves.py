"""`Engine.step` in two halves, with a device that works while the host does something else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from fake_runner import VOCAB, FakeRunner, alone, fake_engine

from atb_models.engine import engine as engine_module
from atb_models.engine.engine import Engine
from atb_models.engine.scheduler import Row
from atb_models.outputs import RequestOutput
from atb_models.sampling_params import SamplingParams

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1], [3, 1, 4, 1, 5, 9, 2, 7, 0, 1, 1], [5], list(range(30))]
PARAMS = SamplingParams(max_tokens=20)
NOT_YET = float("nan")


class DeviceRunner(FakeRunner):
    """The logits of `run` hold nothing until `finish`, which stands for a device that works by itself."""

    gives_top_logits = False  # no backend does whose device works by itself

    def run(self, rows: list[Row], top_logits: int = 0) -> torch.Tensor:
        self._done = super().run(rows, top_logits)
        self._logits = torch.full((len(self._done), VOCAB), NOT_YET)
        return self._logits

    def finish(self) -> None:
        self._logits.copy_(self._done)


def device_engine(**options: int) -> tuple[Engine, DeviceRunner]:
    engine = fake_engine(**options)
    blocks = engine.scheduler.block_manager
    engine.runner = runner = DeviceRunner(blocks.num_blocks, blocks.block_size)
    return engine, runner


def drive(engine: Engine, runner: DeviceRunner, between: Callable[[int], None]) -> dict[int, RequestOutput]:
    """All steps in halves, `between` called with the number of each while its device works; the last outputs."""
    outputs: dict[int, RequestOutput] = {}
    number = 0
    while engine.has_work():
        assert engine.launch()
        between(number)
        runner.finish()
        outputs |= {output.index: output for output in engine.collect()}
        engine.scheduler.check()
        number += 1
    assert not engine.launch() and engine.collect() == []
    assert engine.scheduler.block_manager.num_free == engine.scheduler.block_manager.num_blocks
    return outputs


TIGHT = [{}, {"num_blocks": 14, "prefill": 5}, {"num_blocks": 14, "prefix_cache": False}]


@pytest.mark.parametrize("options", TIGHT, ids=str)
def test_halves_give_what_a_step_gives(options: dict[str, int]) -> None:
    engine, runner = device_engine(**options)
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(prompt, PARAMS, index=index, stream=index == 1)
    looked: list[int] = []
    outputs = drive(engine, runner, lambda number: looked.append(engine.counts()["steps"]))
    assert [outputs[index].token_ids for index in range(5)] == [alone(prompt, 20) for prompt in PROMPTS]
    assert looked == list(range(len(looked))), "a step counts when it is collected"
    assert (engine.metrics()["preemptions"] > 0) == ("num_blocks" in options)


@pytest.mark.parametrize("options", TIGHT, ids=str)
def test_requests_may_come_while_the_device_works(options: dict[str, int]) -> None:
    engine, runner = device_engine(**options)
    engine.add_request(PROMPTS[0], PARAMS)

    def add(number: int) -> None:
        if number % 3 == 0 and number // 3 < 4:
            engine.add_request(PROMPTS[number // 3 + 1], PARAMS, index=number // 3 + 1)

    outputs = drive(engine, runner, add)
    assert [outputs[index].token_ids for index in range(5)] == [alone(prompt, 20) for prompt in PROMPTS]


@pytest.mark.parametrize("options", TIGHT, ids=str)
@pytest.mark.parametrize("when", range(8))
def test_an_abort_while_the_device_works_drops_the_token(options: dict[str, int], when: int) -> None:
    engine, runner = device_engine(**options)
    seqs = [engine.add_request(prompt, PARAMS, index=index) for index, prompt in enumerate(PROMPTS)]
    victims = seqs[::2]
    aborted: dict[int, RequestOutput] = {}

    def abort(number: int) -> None:
        for seq in victims if number == when else []:
            output = engine.abort(seq.seq_id)
            assert output is not None and output.finish_reason == "abort"
            aborted[seq.index] = output

    outputs = drive(engine, runner, abort)
    assert set(outputs) == {1, 3} and set(aborted) == {0, 2, 4}
    assert all(outputs[index].token_ids == alone(PROMPTS[index], 20) for index in (1, 3))
    for index, output in aborted.items():
        assert output.token_ids == seqs[index].output_token_ids == alone(PROMPTS[index], 20)[: len(output.token_ids)]


def test_everything_may_end_and_begin_anew_while_the_device_works() -> None:
    engine, runner = device_engine()
    old = [engine.add_request(prompt, PARAMS) for prompt in PROMPTS[:2]]
    assert engine.launch()
    runner.finish()
    assert engine.collect() == [] and engine.launch()
    for seq in old:
        engine.abort(seq.seq_id)
    assert not engine.has_work()
    engine.add_request(PROMPTS[2], PARAMS, index=2)
    runner.finish()
    assert engine.collect() == [] and all(len(seq.output_token_ids) == 1 for seq in old)
    assert drive(engine, runner, lambda _: None)[2].token_ids == alone(PROMPTS[2], 20)


def test_a_step_is_collected_before_the_next_is_launched() -> None:
    engine, runner = device_engine()
    engine.add_request(PROMPTS[0], PARAMS)
    assert engine.launch()
    with pytest.raises(AssertionError, match="the step before was not collected"):
        engine.launch()
    runner.finish()
    assert engine.collect() == [] == engine.collect() and engine.counts()["steps"] == 1


@pytest.mark.parametrize("every", [2, 3, 7])
def test_after_an_interrupt_between_the_halves_the_step_is_done_again(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Seeded sampling as well: no number is drawn for a step that is dropped."""
    params = [PARAMS, SamplingParams(max_tokens=20, temperature=1.0, seed=4, repetition_penalty=1.3)]
    answers = []
    for is_interrupted in (False, True):
        engine = fake_engine(num_blocks=14, prefill=5)
        seqs = [engine.add_request(prompt, params[index % 2]) for index, prompt in enumerate(PROMPTS)]
        collect, calls = engine.collect, itertools.count(1)

        def interrupted(calls: itertools.count[int] = calls, collect: Callable[[], object] = collect) -> object:
            if next(calls) % every == 0:
                raise KeyboardInterrupt
            return collect()

        with monkeypatch.context() as patch:
            patch.setattr(engine, "collect", interrupted if is_interrupted else collect)
            while engine.has_work():
                with suppress(KeyboardInterrupt):
                    engine.step()
        answers.append([seq.output_token_ids for seq in seqs])
        assert engine.counts()["steps"] < engine.runner.steps or not is_interrupted
    assert answers[0] == answers[1] and answers[0][0] == alone(PROMPTS[0], 20)


def test_times_are_those_of_the_halves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only moves where this test moves it: 1 s in the runner, 2 s in sampling, 100 s between."""
    now = [0.0]
    monkeypatch.setattr(engine_module, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    engine, runner = device_engine()
    runner.look = lambda rows: passes(1.0)
    engine.on_step = lambda *_: passes(2.0)
    engine.add_request(PROMPTS[0], SamplingParams(max_tokens=3))
    drive(engine, runner, lambda _: passes(100.0))
    metrics = engine.metrics()
    assert (metrics["prefill_step_s"], metrics["decode_step_s"]) == ([3.0], [3.0, 3.0])
    assert (metrics["run_s"], metrics["host_s"], metrics["steps"]) == (3.0, 6.0, 3)
