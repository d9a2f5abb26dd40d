"""Logits that are no finite numbers: such a token is never chosen, and a row without any ends its request alone."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_runner import VOCAB, FakeRunner, alone, fake_engine

from atb_models import LLM, SamplingParams
from atb_models.engine.sampling.logprobs import token_logprobs
from atb_models.engine.sampling.sampler import NO_TOKEN, sample
from atb_models.engine.scheduler import Row
from atb_models.engine.sequence import Sequence
from atb_models.errors import AtbError
from atb_models.outputs import RequestOutput
from tests.tiny import write_checkpoint, write_weights

NAN, INF = math.nan, math.inf
GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)


def sequence(**fields: object) -> Sequence:
    return Sequence([3, 1], SamplingParams(**fields).resolve({}))  # type: ignore[arg-type]


CHOICES: list[dict[str, object]] = [
    {},
    {"logprobs": 2},
    *(
        {"temperature": temperature, "seed": seed, **cut}
        for temperature in (0.5, 1e-40, 50.0)
        for seed in range(5)
        for cut in ({}, {"top_k": 1}, {"top_k": 4}, {"top_p": 0.99}, {"top_k": 4, "top_p": 0.9}, {"min_p": 0.01})
    ),
    {"presence_penalty": 2.0},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.01},
    {"repetition_penalty": 100},
    {"logit_bias": {0: 100, 2: 100, 5: 100}},
    {"logit_bias": {2: 100}, "temperature": 1.0, "seed": 1, "logprobs": 5, "repetition_penalty": 100},
]


@pytest.mark.parametrize("fields", CHOICES, ids=str)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_only_finite_logits_are_chosen(fields: dict[str, object], bad: float) -> None:
    logits = torch.tensor([[bad, 2.0, bad, 9.0, 3.0, bad]])
    tokens, logprobs = sample(logits, [sequence(**fields)])
    assert tokens[0] in (1, 3, 4)
    for known in logprobs or []:
        assert known is not None
        assert not any(math.isnan(value) or value > 0 for value in known.values())
        assert all(known.get(token, -INF) == -INF for token in (0, 2, 5))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_greedy_takes_the_largest_number(bad: float) -> None:
    logits = torch.tensor([[1.0, 2.0, bad, 9.0, 3.0], [4.0, 2.0, 1.0, 0.0, 3.0], [bad, bad, bad, bad, -8.0]])
    assert sample(logits, [sequence() for _ in range(3)]) == ([3, 0, 4], None)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, {"logprobs": 3}, {"presence_penalty": 1.0}], ids=str)
def test_a_row_without_a_number_has_no_token_and_spoils_no_other(fields: dict[str, object], bad: float) -> None:
    good = torch.tensor([1.0, 2.0, 9.0])
    rows = torch.stack([good, torch.full((3,), bad), good])
    alone_tokens, alone_logprobs = sample(good[None], [sequence(logprobs=3)])
    tokens, logprobs = sample(rows, [sequence(logprobs=3), sequence(**fields), sequence(logprobs=3)])
    assert tokens == [alone_tokens[0], NO_TOKEN, alone_tokens[0]]
    assert logprobs is not None and alone_logprobs is not None
    assert logprobs == [alone_logprobs[0], None, alone_logprobs[0]]


@pytest.mark.parametrize(
    "penalty, logits, best",
    [(0.01, [3e38, 2e38, 0.0, 1.0], 1), (100, [-3e38, -2e38, -1e38, -1e38], 2), (100, [-3e38, -2e38, NAN, INF], 0)],
)
def test_a_penalty_that_overflows_keeps_its_direction(penalty: float, logits: list[float], best: int) -> None:
    """Tokens 1 and 3 are in the prompt; 0 and 2 are not."""
    for fields in ({}, {"temperature": 1e-30, "seed": 1}):
        assert sample(torch.tensor([logits]), [sequence(repetition_penalty=penalty, **fields)])[0] == [best]


def test_log_probabilities_are_those_of_the_numbers() -> None:
    known = token_logprobs(torch.tensor([[1.0, NAN, 3.0, INF, -INF]]), [1], [5], [(3,)])[0]
    total = math.log(math.exp(1) + math.exp(3))
    assert known == {1: -INF, 2: pytest.approx(3 - total), 0: pytest.approx(1 - total), 3: -INF}
    assert list(token_logprobs(torch.full((1, 4), NAN), [2], [3], [()])[0].items()) == [(2, -INF)]


class Spoilt(FakeRunner):
    """Logits of a sequence are NaN from `start` tokens on: all of them, or every other one."""

    def __init__(self, *sizes: int, first: int, start: int, step: int) -> None:
        super().__init__(*sizes)
        self.first, self.start, self.step_ids = first, start, step

    def logits(self, rows: list[Row]) -> torch.Tensor:
        logits, place = super().logits(rows).clone(), 0
        for row in rows:
            seq = row.seq
            if row.num_logits and seq.token_ids[0] == self.first and len(seq.token_ids) >= self.start:
                logits[place, :: self.step_ids] = NAN
            place += row.num_logits
        return logits


@pytest.mark.parametrize("stream", [False, True])
def test_the_request_ends_with_an_error_and_others_go_on(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    engine = fake_engine()
    blocks = engine.scheduler.block_manager
    engine.runner = Spoilt(blocks.num_blocks, blocks.block_size, first=7, start=5, step=1)
    for index, prompt in enumerate(([7, 8, 9], [5, 6], [7, 1])):
        engine.add_request(prompt, SamplingParams(max_tokens=6), index=index, stream=stream)
    last: dict[int, RequestOutput] = {}
    while engine.has_work():
        last |= {output.index: output for output in engine.step()}
        engine.scheduler.check()
    assert last[1].finish_reason == "length" and last[1].token_ids == alone([5, 6], 6) and last[1].error is None
    for index, prompt in ((0, [7, 8, 9]), (2, [7, 1])):
        assert last[index].finish_reason == "error"
        assert last[index].token_ids == alone(prompt, 5 - len(prompt)), "what it had by then"
        assert "not one of the model's logits" in (last[index].error or "")
        told = f"request {index} ended with an error after {5 - len(prompt)} tokens: not one"
        with pytest.raises(AtbError, match=told):
            last[index].raise_for_error()
    last[1].raise_for_error()
    assert engine.counts()["generated_tokens"] == 6 + 2 + 3
    assert blocks.num_free == blocks.num_blocks
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "no finite numbers" in warnings[0] and f"of {VOCAB}" in warnings[0]


def test_some_bad_logits_change_nothing_but_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    engine = fake_engine()
    blocks = engine.scheduler.block_manager
    engine.runner = Spoilt(blocks.num_blocks, blocks.block_size, first=7, start=1, step=2)
    engine.add_request([7, 8], SamplingParams(max_tokens=8))
    outputs: list[RequestOutput] = []
    while engine.has_work():
        outputs += engine.step()
    assert outputs[0].finish_reason == "length" and all(token % 2 for token in outputs[0].token_ids)
    assert len([record for record in caplog.records if "no finite numbers" in record.getMessage()]) == 1


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose token 9 has no embedding that is a number, and whose token 20 no number in the head."""
    folder = tmp_path_factory.mktemp("spoilt")
    tensors = write_checkpoint(folder)
    tensors["model.embed_tokens.weight"][9] = NAN
    tensors["lm_head.weight"][20] = NAN
    write_weights(folder, tensors)
    return folder


def test_the_logits_of_a_prompt_stay_as_they_are(spoilt: Path) -> None:
    with LLM(spoilt, dtype="fp32", device="cpu") as llm:
        good, bad = llm.prompt_logits([[5, 6], [5, 9]])
        assert good[:, 20].isnan().all() and good.isnan().sum() == 2
        assert bad[1].isnan().all()
        params = SamplingParams(max_tokens=2, prompt_logprobs=1, logprobs=300, ignore_eos=True)
        (output,) = llm.generate([[5, 20, 6]], params)
    assert output.prompt_logprobs is not None and output.logprobs is not None
    assert output.prompt_logprobs[1] is not None and output.prompt_logprobs[1][20] == -INF
    assert [len(known) for known in output.logprobs] == [255, 255], "all but the one that is no number"


def test_run_pa_answers_the_others_and_ends_with_status_1(spoilt: Path, root: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(root / "run_pa.py"), "--model_path", str(spoilt), "--dtype", "fp32", "--device", "cpu",
         "--load_tokenizer", "False", "--input_ids", "5,6", "5,9", "--max_output_length", "3", "--ignore_eos",
         "--logprobs", "300"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 1, ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last == (
        "atb-models: error: request 1 ended with an error after 0 tokens: not one of the model's logits for the next"
        " token is a finite number, so there is no next token"
    )
    assert "Generate[0] token num: 3" in ran.stdout and "Generate[1] token num: 0" in ran.stdout
    assert ran.stderr.count("no finite numbers") == 1 and "Traceback" not in ran.stderr
    lines = dict(line.split(": ", 1) for line in ran.stdout.splitlines() if line.startswith("Logprobs"))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    known = json.loads(lines["Logprobs[0]"], parse_constant=refuse)
    assert len(known) == 3 and json.loads(lines["Logprobs[1]"]) == []
