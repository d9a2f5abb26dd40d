"""The engine over a fake runner: answers, ends, streaming, metrics."""

from __future__ import annotations

import pytest
import torch
from fake_runner import VOCAB, FakeRunner, Letters, alone, fake_engine, logits_of, states_of

from atb_models.engine.engine import Engine
from atb_models.engine.scheduler import Row
from atb_models.errors import CapacityError, RequestError
from atb_models.outputs import RequestOutput
from atb_models.sampling_params import SamplingParams

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1], [3, 1, 4, 1, 5, 9, 2, 7, 0, 1, 1], [5], list(range(30))]


def drain(engine: Engine) -> list[RequestOutput]:
    outputs = []
    while engine.has_work():
        outputs += engine.step()
        engine.scheduler.check()
    assert engine.scheduler.block_manager.num_free == engine.scheduler.block_manager.num_blocks
    return outputs


def generate(engine: Engine, prompts: list[list[int]], *params: SamplingParams) -> list[list[int]]:
    for index, prompt in enumerate(prompts):
        engine.add_request(prompt, params[index % len(params)], index=index)
    return [output.token_ids for output in sorted(drain(engine), key=lambda output: output.index)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefill": 1},
        {"prefill": 7, "block_size": 1, "num_blocks": 160},
        {"batch": 1},
        {"num_blocks": 14, "prefix_cache": False},
        {"num_blocks": 14, "prefill": 5},
        {"block_size": 128, "num_blocks": 8},
    ],
    ids=str,
)
def test_a_batch_answers_like_each_request_alone(options: dict[str, int]) -> None:
    engine = fake_engine(**options)
    want = [alone(prompt, 20) for prompt in PROMPTS]
    assert generate(engine, PROMPTS, SamplingParams(max_tokens=20)) == want
    metrics = engine.metrics()
    assert (metrics["preemptions"] > 0) == (options.get("num_blocks") == 14)
    assert [len(answer) for answer in want] == [20] * 5 and metrics["generated_tokens"] == 100
    assert metrics["prompt_tokens"] == sum(map(len, PROMPTS))
    assert metrics["steps"] == engine.runner.steps and metrics["running"] == metrics["waiting"] == 0
    assert generate(engine, PROMPTS, SamplingParams(max_tokens=20)) == want
    if options.get("prefix_cache", True) and options.get("block_size") != 128:
        assert engine.metrics()["prefix_hit_tokens"] > 0


def test_seeded_sampling_is_the_same_in_company_and_through_preemption() -> None:
    params = [
        SamplingParams(max_tokens=20, temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=1),
        SamplingParams(max_tokens=20, temperature=1.5, frequency_penalty=0.5, seed=2),
        SamplingParams(max_tokens=20),
    ]
    want = [generate(fake_engine(), [prompt], params[i % 3])[0] for i, prompt in enumerate(PROMPTS)]
    tight = fake_engine(num_blocks=14, prefill=5)
    assert generate(tight, PROMPTS, *params) == want and tight.metrics()["preemptions"] > 0
    assert want[0] != alone(PROMPTS[0], 20)


def test_ends() -> None:
    answer = alone(PROMPTS[0], 30)
    eos = next(token for token in answer[4:] if token not in answer[:4])
    stop = next(token for token in answer[8:] if token not in answer[:8] and token != eos)
    first_eos, first_stop = answer.index(eos), answer.index(stop)
    engine = fake_engine(eos_token_ids=[eos], tokenizer=Letters())

    def run(**fields: object) -> RequestOutput:
        engine.add_request(PROMPTS[0], SamplingParams(**{"max_tokens": 30, **fields}))
        return drain(engine)[0]

    for fields, ids, reason, hidden in [
        ({}, answer[: first_eos + 1], "stop", 1),
        ({"ignore_eos": True}, answer, "length", 0),
        ({"ignore_eos": True, "stop_token_ids": [stop]}, answer[: first_stop + 1], "stop", 1),
        ({"stop_token_ids": [answer[0]]}, answer[:1], "stop", 1),
        ({"max_tokens": 1}, answer[:1], "length", 0),
        ({"max_tokens": first_eos + 1}, answer[: first_eos + 1], "stop", 1),
    ]:
        output = run(**fields)
        assert (output.token_ids, output.finish_reason) == (ids, reason), fields
        assert output.text == Letters().decode(ids[: len(ids) - hidden])
    assert run(ignore_eos=True, max_tokens=None).finish_reason == "length"
    assert len(run(ignore_eos=True, max_tokens=None).token_ids) == 100 - len(PROMPTS[0])


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(stream: bool) -> None:
    answer = alone(PROMPTS[0], 30)
    text = Letters().decode(answer)
    engine = fake_engine(tokenizer=Letters())
    params = SamplingParams(max_tokens=30, stop=[text[5:8], "never?"])
    cut = text.index(text[5:8])
    engine.add_request(PROMPTS[0], params, stream=stream)
    outputs = drain(engine)
    last = outputs[-1]
    assert (last.text, last.finish_reason, last.token_ids) == (text[:cut], "stop", answer[: cut + 3])
    assert len(outputs) == (cut + 3 if stream else 1)
    if stream:
        assert "".join(output.delta for output in outputs) == text[:cut]
        assert [output.finish_reason for output in outputs[:-1]] == [None] * (cut + 2)


def test_a_stop_string_may_show_only_when_the_text_is_closed() -> None:
    class Broken:
        def decode(self, ids: list[int]) -> str:
            return "x" * (len(ids) - 1) + "\ufffd"

    engine = fake_engine(tokenizer=Broken())
    engine.add_request(PROMPTS[0], SamplingParams(max_tokens=2, stop="\ufffd"))
    output = drain(engine)[0]
    assert (output.text, output.finish_reason, len(output.token_ids)) == ("x", "stop", 2)


def test_only_streaming_requests_give_news_on_the_way() -> None:
    engine = fake_engine(tokenizer=Letters())
    engine.add_request(PROMPTS[0], SamplingParams(max_tokens=6), stream=True, index=0)
    engine.add_request(PROMPTS[1], SamplingParams(max_tokens=4), index=1)
    steps = []
    while engine.has_work():
        steps.append(engine.step())
    assert [[output.index for output in outputs] for outputs in steps] == [[0], [0], [0], [0, 1], [0], [0]]
    answer = alone(PROMPTS[0], 6)
    for length, outputs in enumerate(steps, 1):
        assert outputs[0].token_ids == answer[:length]
        assert outputs[0].text == Letters().decode(answer[:length])
        assert outputs[0].delta == Letters().decode(answer[length - 1 : length])
    assert steps[3][1].delta == "" and steps[3][1].text == Letters().decode(alone(PROMPTS[1], 4))


def test_abort_gives_what_there_is() -> None:
    engine = fake_engine(tokenizer=Letters(), batch=1)
    running = engine.add_request(PROMPTS[0], SamplingParams(max_tokens=9), index=4)
    queued = engine.add_request(PROMPTS[1], SamplingParams(max_tokens=9))
    streamed = engine.add_request(PROMPTS[1], SamplingParams(max_tokens=9), stream=True)
    for _ in range(3):
        assert engine.step() == []
    output = engine.abort(running.seq_id)
    assert output is not None and output.finish_reason == "abort" and output.index == 4
    assert output.token_ids == alone(PROMPTS[0], 3) and output.text == Letters().decode(output.token_ids)
    assert engine.abort(running.seq_id) is None
    output = engine.abort(queued.seq_id)
    assert output is not None and (output.token_ids, output.text) == ([], "") and "queue_s" not in output.metrics
    engine.step()
    output = engine.abort(streamed.seq_id)
    assert output is not None and output.text == Letters().decode(alone(PROMPTS[1], 1)) and output.delta == ""
    assert not engine.has_work() and engine.step() == [] and drain(engine) == []


def test_an_abort_from_the_hook_is_taken_in_its_stride() -> None:
    engine = fake_engine()
    victim = engine.add_request(PROMPTS[0], SamplingParams(max_tokens=9, logprobs=1))
    engine.add_request(PROMPTS[1], SamplingParams(max_tokens=9, logprobs=1), index=1)
    engine.on_step = lambda rows, logits, tokens: engine.abort(victim.seq_id) and None
    outputs = drain(engine)
    assert [output.index for output in outputs] == [1] and outputs[0].token_ids == alone(PROMPTS[1], 9)
    assert [next(iter(one)) for one in outputs[0].logprobs or []] == outputs[0].token_ids
    assert victim.output_token_ids == [] and victim.logprobs == []


@pytest.mark.parametrize("prefill, num_blocks", [(64, 48), (4, 48), (4, 9)])
def test_prompt_logits_cover_every_token(prefill: int, num_blocks: int) -> None:
    engine = fake_engine(num_blocks, prefill=prefill, max_seq_len=30)
    for prompt in PROMPTS[:2]:
        engine.add_request(prompt, SamplingParams(max_tokens=12))
        engine.step()
    seqs = [engine.add_request(PROMPTS[i], want_prompt_logits=True, index=i) for i in (0, 4)]
    drain(engine)
    for seq, prompt in zip(seqs, (PROMPTS[0], PROMPTS[4]), strict=True):
        states = states_of(prompt)
        want = torch.stack([logits_of(states[: i + 1]) for i in range(len(prompt))])
        assert torch.equal(torch.cat(seq.prompt_logits), want)
        assert seq.num_cached_tokens == 0 and seq.output_token_ids == [int(want[-1].argmax())]


def test_prompt_logits_survive_preemption() -> None:
    engine = fake_engine(9, prefill=4, prefix_cache=False)
    engine.add_request(PROMPTS[1], SamplingParams(max_tokens=9))
    seq = engine.add_request(list(range(28)), want_prompt_logits=True)
    drain(engine)
    assert seq.num_preemptions > 0 and torch.cat(seq.prompt_logits).shape == (28, VOCAB)


def test_logprobs_come_with_the_output() -> None:
    engine = fake_engine()
    engine.add_request(PROMPTS[0], SamplingParams(max_tokens=5, logprobs=2))
    engine.add_request(PROMPTS[1], SamplingParams(max_tokens=5), index=1)
    outputs = sorted(drain(engine), key=lambda output: output.index)
    assert outputs[1].logprobs is None and outputs[0].logprobs is not None
    known = list(PROMPTS[0])
    for token, logprobs in zip(outputs[0].token_ids, outputs[0].logprobs, strict=True):
        want = logits_of(states_of(known)).log_softmax(-1)
        assert next(iter(logprobs)) == token and set(logprobs) == set(want.topk(2).indices.tolist())
        assert all(abs(value - float(want[i])) < 1e-5 for i, value in logprobs.items())
        known.append(token)


def test_the_checkpoint_defaults_are_used() -> None:
    engine = fake_engine(generation={"do_sample": True, "temperature": 5.0})
    greedy = alone(PROMPTS[0], 20)
    assert generate(engine, [PROMPTS[0]], SamplingParams(max_tokens=20)) != [greedy]
    assert generate(engine, [PROMPTS[0]], SamplingParams(max_tokens=20, temperature=0)) == [greedy]


def test_the_hook_sees_rows_logits_and_tokens() -> None:
    seen: list[tuple[list[tuple[int, int]], torch.Size, list[int]]] = []

    def look(rows: list[Row], logits: torch.Tensor, tokens: list[int]) -> None:
        seen.append(([(row.seq.num_computed_tokens, row.num_tokens) for row in rows], logits.shape, tokens))

    engine = fake_engine(on_step=look, prefill=6)
    engine.add_request(PROMPTS[0], SamplingParams(max_tokens=2))
    drain(engine)
    answer = alone(PROMPTS[0], 2)
    assert seen == [([(0, 6)], (0, VOCAB), []), ([(6, 3)], (1, VOCAB), answer[:1]), ([(9, 1)], (1, VOCAB), answer[1:])]


def test_requests_that_cannot_be_served_are_refused_at_once() -> None:
    engine = fake_engine(num_blocks=4)
    with pytest.raises(RequestError, match=f"token id {VOCAB}; ids go from 0 to {VOCAB - 1}"):
        engine.add_request([1, VOCAB])
    with pytest.raises(RequestError, match="token id -1"):
        engine.add_request([1, -1])
    with pytest.raises(RequestError, match="0 tokens"):
        engine.add_request([])
    with pytest.raises(RequestError, match=r"stop \['x'\] needs .* tokenizer files; use stop_token_ids"):
        engine.add_request([1], SamplingParams(stop="x"))
    with pytest.raises(CapacityError, match="KV blocks"):
        engine.add_request([1], SamplingParams(max_tokens=50))
    assert not engine.has_work() and engine.metrics()["prompt_tokens"] == 0


def test_metrics_and_timings() -> None:
    engine = fake_engine(prefill=4, num_blocks=10)
    engine.add_request(PROMPTS[0], SamplingParams(max_tokens=3))
    engine.add_request(PROMPTS[1], SamplingParams(max_tokens=3))
    engine.step()
    metrics = engine.metrics()
    assert (metrics["running"], metrics["waiting"], metrics["free_blocks"], metrics["total_blocks"]) == (1, 1, 7, 10)
    outputs = drain(engine)
    metrics = engine.metrics()
    # chunks of 4 + 4 + (1 and 3): the third step starts both answers, two more end them
    assert (metrics["steps"], metrics["chunks"], metrics["generated_tokens"]) == (5, 4, 6)
    assert len(metrics["prefill_step_s"]) == 3 and len(metrics["decode_step_s"]) == 2
    total = sum(metrics["prefill_step_s"]) + sum(metrics["decode_step_s"])
    assert metrics["run_s"] > 0 and metrics["host_s"] > 0 and abs(metrics["run_s"] + metrics["host_s"] - total) < 1e-9
    for output in outputs:
        assert 0 <= output.metrics["queue_s"] <= output.metrics["first_token_s"] <= output.metrics["total_s"]
        assert output.metrics["generated_tokens"] == 3 and output.metrics["preemptions"] == 0
    engine.reset_timings()
    metrics = engine.metrics()
    assert metrics["prefill_step_s"] == metrics["decode_step_s"] == [] and metrics["run_s"] == metrics["host_s"] == 0
    assert metrics["steps"] == 5


def test_a_failed_run_leaves_the_requests_to_be_run_again() -> None:
    engine = fake_engine(prefill=4)
    engine.add_request(PROMPTS[0], SamplingParams(max_tokens=8))
    runner = engine.runner
    assert isinstance(runner, FakeRunner)
    fail = {2, 5}

    def look(rows: list[Row]) -> None:
        if runner.steps in fail:
            fail.discard(runner.steps)
            raise OSError("no answer")

    runner.look = look
    failures = 0
    outputs: list[RequestOutput] = []
    while engine.has_work():
        try:
            outputs += engine.step()
        except OSError:
            failures += 1
        engine.scheduler.check()
    assert failures == 2 and outputs[0].token_ids == alone(PROMPTS[0], 8)
