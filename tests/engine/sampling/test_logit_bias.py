"""`SamplingParams.logit_bias` through `LLM`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atb_models import LLM, SamplingParams
from atb_models.errors import RequestError
from tests.tiny import write_checkpoint

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("bias")
    write_checkpoint(path)
    with LLM(path, dtype="fp32", device="cpu", max_batch_size=4, block_size=16) as llm:
        yield llm


def answer(llm: LLM, **fields: object) -> list[int]:
    params = SamplingParams(**{"max_tokens": 6, "temperature": 0, "ignore_eos": True, **fields})
    return llm.generate([PROMPT], params)[0].token_ids


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.5, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("key", [int, str])
def test_100_forces_and_minus_100_bans(llm: LLM, key: type, sampling: dict[str, object]) -> None:
    favourite = answer(llm)[0]
    forced = favourite + 1
    assert answer(llm, **sampling, logit_bias={key(forced): 100}) == [forced] * 6
    assert favourite not in answer(llm, **sampling, logit_bias={key(favourite): -100})


def test_small_biases_only_tip_the_scales(llm: LLM) -> None:
    known = llm.generate([PROMPT], SamplingParams(max_tokens=1, temperature=0, logprobs=2))[0].logprobs
    assert known is not None
    (first, best), (second, next_best) = known[0].items()
    margin = best - next_best
    assert answer(llm, max_tokens=1, logit_bias={second: margin * 0.9}) == [first]
    assert answer(llm, max_tokens=1, logit_bias={second: margin * 1.1 + 1e-4}) == [second]


def test_neighbours_in_a_batch_are_left_alone(llm: LLM) -> None:
    plain, forced = answer(llm), answer(llm)[0] + 1
    params = [SamplingParams(max_tokens=6, ignore_eos=True), SamplingParams(max_tokens=6, logit_bias={forced: 100})]
    outputs = llm.generate([PROMPT] * 4, [params[i % 2] for i in range(4)])
    assert [output.token_ids for output in outputs] == [plain, [forced] * 6] * 2


def test_log_probabilities_are_those_of_the_raw_model(llm: LLM) -> None:
    forced = answer(llm)[0] + 1
    raw = llm.generate([PROMPT], SamplingParams(max_tokens=1, logprob_token_ids=[forced]))[0].logprobs
    biased = llm.generate([PROMPT], SamplingParams(max_tokens=1, logprobs=0, logit_bias={forced: 100}))[0].logprobs
    assert raw is not None and biased is not None
    assert biased[0] == {forced: pytest.approx(raw[0][forced], abs=1e-5)} and biased[0][forced] < -0.5


def test_an_id_beyond_the_vocabulary_is_refused_and_nothing_runs(llm: LLM) -> None:
    with pytest.raises(RequestError, match="logit_bias has token id 999999; ids go from 0 to"):
        llm.generate([PROMPT] * 2, [SamplingParams(max_tokens=1), SamplingParams(logit_bias={"999999": 1})])
    assert llm.metrics()["running"] == llm.metrics()["waiting"] == 0 and len(answer(llm)) == 6
