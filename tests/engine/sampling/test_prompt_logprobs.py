"""Log-probabilities of prompt tokens and of ids that were asked for, by the definition: log_softmax of the logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_runner import LOGITS, VOCAB, alone, fake_engine, logits_of, states_of

from atb_models import LLM, RequestOutput, SamplingParams
from atb_models.engine.engine import Engine
from atb_models.engine.scheduler import Row
from atb_models.errors import RequestError
from atb_models.outputs import TokenLogprobs
from tests.tiny import write_checkpoint

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
Known = list[TokenLogprobs | None]


def check(known: Known | None, prompt: list[int], logits_TV: torch.Tensor, top: int) -> None:
    """known: one entry a token, the token itself first, then the `top` most probable of float64 `logits_TV`."""
    assert known is not None and len(known) == len(prompt) and known[0] is None
    want_TV = logits_TV.double().log_softmax(-1)
    for i, (token, one) in enumerate(zip(prompt[1:], known[1:], strict=True)):
        assert one is not None and list(one) == list(dict.fromkeys([token, *want_TV[i].topk(top).indices.tolist()]))
        assert list(one.values()) == pytest.approx(want_TV[i, list(one)].tolist(), abs=2e-4)


def check_fake(known: Known | None, prompt: list[int], top: int) -> None:
    states = states_of(prompt)
    check(known, prompt, torch.stack([logits_of(states[: i + 1]) for i in range(len(prompt))]), top)


def drain(engine: Engine) -> dict[int, RequestOutput]:
    outputs: dict[int, RequestOutput] = {}
    while engine.has_work():
        outputs |= {output.index: output for output in engine.step()}
        engine.scheduler.check()
    return outputs


@pytest.mark.parametrize("options", [{}, {"prefill": 4}, {"prefill": 5, "batch": 2}, {"prompt_logits": 3}], ids=str)
def test_each_prompt_token_in_company(options: dict[str, int]) -> None:
    params = [
        SamplingParams(max_tokens=4, prompt_logprobs=2, logprobs=1),
        SamplingParams(max_tokens=6),
        SamplingParams(max_tokens=1, prompt_logprobs=0),
        SamplingParams(max_tokens=3, logprobs=0, temperature=1.0, seed=1),
    ]
    engine = fake_engine(**options)
    for _ in range(2):  # the second time the prefix cache knows the prompts
        for index, one in enumerate(params):
            engine.add_request(PROMPT[index:], one, index=index)
        outputs = drain(engine)
        for index, top in ((0, 2), (2, 0)):
            check_fake(outputs[index].prompt_logprobs, PROMPT[index:], top)
            assert outputs[index].metrics["cached_tokens"] == 0
        assert outputs[1].prompt_logprobs is None and outputs[1].logprobs is None
        assert [len(outputs[index].logprobs or []) for index in (0, 2, 3)] == [4, 0, 3]
        for index in range(3):
            assert outputs[index].token_ids == alone(PROMPT[index:], len(outputs[index].token_ids))
    assert outputs[1].metrics["cached_tokens"] == 8


def test_no_step_has_more_prompt_logits_than_planned_and_others_go_on() -> None:
    most: list[int] = []

    def look(rows: list[Row]) -> None:
        most.append(sum(row.num_logits for row in rows if row.scores_prompt))
        assert len(rows) == len({row.seq.seq_id for row in rows}) and all(row.num_tokens for row in rows)

    engine = fake_engine(prompt_logits=5, look=look)
    for index in range(3):
        engine.add_request(PROMPT, SamplingParams(max_tokens=2, prompt_logprobs=1), index=index)
    engine.add_request(PROMPT[:4], SamplingParams(max_tokens=1), index=3)
    assert [output.index for output in engine.step()] == [3], "a request that wants no prompt logits need not wait"
    outputs = drain(engine)
    assert max(most) == 5
    for index in range(3):
        check_fake(outputs[index].prompt_logprobs, PROMPT, 1)


def test_a_preempted_prompt_is_scored_anew_and_a_scored_one_never_again() -> None:
    engine = fake_engine(9, prefill=4, prefix_cache=True)
    engine.add_request([2, 7, 1], SamplingParams(max_tokens=20))
    prompt = list(range(20))
    seq = engine.add_request(prompt, SamplingParams(max_tokens=9, prompt_logprobs=1), index=1, stream=True)
    before, first = 0, None
    for _ in range(100):
        outputs = {output.index: output for output in engine.step()}
        if seq.num_preemptions > before and first is not None:
            assert not seq.scores_prompt and outputs.get(1, first).prompt_logprobs is first.prompt_logprobs
        before, first = seq.num_preemptions, first or outputs.get(1)
    assert not engine.has_work() and first is not None and before
    check_fake(first.prompt_logprobs, prompt, 1)
    assert seq.output_token_ids == alone(prompt, 9)

    engine = fake_engine(9, prefill=4)
    engine.add_request([2, 7, 1], SamplingParams(max_tokens=9))
    seq = engine.add_request(list(range(28)), SamplingParams(max_tokens=1, prompt_logprobs=1), index=1)
    while not seq.num_preemptions:
        assert not engine.step()
    assert seq.scores_prompt and len(seq.prompt_logprobs or []) > 4
    check_fake(drain(engine)[1].prompt_logprobs, list(range(28)), 1)


def test_a_step_that_failed_is_repeated_without_a_trace() -> None:
    engine = fake_engine(prefill=4)
    engine.add_request(PROMPT, SamplingParams(max_tokens=2, prompt_logprobs=1))

    def fail(rows: list[Row], logits: torch.Tensor, tokens: list[int]) -> None:
        raise OSError("no place left")

    for _ in range(2):
        engine.on_step = fail
        with pytest.raises(OSError, match="no place"):
            engine.step()
        engine.on_step = None
        engine.step()
    check_fake(drain(engine)[0].prompt_logprobs, PROMPT, 1)


def test_streams_and_aborts() -> None:
    engine = fake_engine(prefill=6)
    params = SamplingParams(max_tokens=3, prompt_logprobs=1)
    cut = engine.add_request(PROMPT, params, stream=True)
    assert engine.step() == []
    output = engine.abort(cut.seq_id)
    assert output is not None and output.prompt_logprobs is None
    engine.add_request(PROMPT, params, stream=True)
    engine.add_request([5], params, index=1)
    streamed = []
    while engine.has_work():
        streamed += engine.step()
    assert [output.index for output in streamed] == [0, 0, 0, 1]
    for output in streamed:
        check_fake(output.prompt_logprobs, [5] if output.index else PROMPT, 1)


def test_a_prompts_raw_logits_and_log_probabilities_together() -> None:
    engine = fake_engine(prefill=10)
    seq = engine.add_request(PROMPT, SamplingParams(prompt_logprobs=1), want_prompt_logits=True)
    check(drain(engine)[0].prompt_logprobs, PROMPT, torch.cat(seq.prompt_logits), 1)


@pytest.mark.parametrize("top", [None, 0, 2])
def test_ids_that_were_asked_for(top: int | None) -> None:
    ids = [7, VOCAB - 1, 7]
    engine = fake_engine()
    engine.add_request(PROMPT, SamplingParams(max_tokens=3, logprobs=top, logprob_token_ids=ids, repetition_penalty=2))
    engine.add_request(PROMPT[:3], SamplingParams(max_tokens=3, logprobs=1), index=1)
    engine.add_request(PROMPT[:5], SamplingParams(max_tokens=3, logprob_token_ids=[]), index=2)
    outputs = drain(engine)
    known = list(PROMPT)
    for token, one in zip(outputs[0].token_ids, outputs[0].logprobs or [], strict=True):
        want_V = logits_of(states_of(known)).double().log_softmax(-1)
        assert list(one) == list(dict.fromkeys([token, *want_V.topk(top or 0).indices.tolist(), *ids]))
        assert list(one.values()) == pytest.approx(want_V[list(one)].tolist(), abs=1e-5)
        known.append(token)
    assert [len(one) for one in outputs[1].logprobs or []] == [1] * 3 and outputs[2].logprobs is None


def test_an_id_beyond_the_vocabulary() -> None:
    engine = fake_engine()
    with pytest.raises(RequestError, match=f"logprob_token_ids has token id {VOCAB}; ids go from 0 to {VOCAB - 1}"):
        engine.add_request(PROMPT, SamplingParams(logprob_token_ids=[0, VOCAB]))
    assert not engine.has_work()


def test_more_than_there_are_is_all() -> None:
    engine = fake_engine()
    engine.add_request(PROMPT, SamplingParams(max_tokens=1, prompt_logprobs=10**6, logprobs=10**6))
    output = drain(engine)[0]
    check_fake(output.prompt_logprobs, PROMPT, LOGITS.shape[1])
    assert output.logprobs is not None and len(output.logprobs[0]) == VOCAB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(path)
    yield path


@pytest.mark.parametrize("tp", [1, 2])
def test_of_a_model(folder: Path, tp: int) -> None:
    """Long prompts in chunks, with a batch beside them and with a prefix cache that knows them."""
    prompts = [[(7 * i * i + n) % 256 for i in range(length)] for n, length in enumerate((150, 30, 1, 40))]
    scored = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, prompt_logprobs=3, logprob_token_ids=[9, 8])
    plain = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    with LLM(
        folder, dtype="fp32", device="cpu", tp=tp, block_size=16, max_prefill_tokens=16 if tp == 2 else None
    ) as llm:
        tokens = [output.token_ids for output in llm.generate(prompts, plain)]
        outputs = llm.generate(prompts, [scored, plain, scored, scored])
        logits = llm.prompt_logits(prompts)
    for i in (0, 2, 3):
        check(outputs[i].prompt_logprobs, prompts[i], logits[i], 3)
        assert outputs[i].token_ids == tokens[i][:2] and outputs[i].metrics["cached_tokens"] == 0
        first = (outputs[i].logprobs or [])[0]
        assert list(first) == [tokens[i][0], *(one for one in (9, 8) if one != tokens[i][0])]
        want_V = logits[i][-1].log_softmax(-1)
        assert list(first.values()) == pytest.approx(want_V[list(first)].tolist(), abs=2e-4)
    assert outputs[1].prompt_logprobs is None and outputs[1].token_ids == tokens[1]
