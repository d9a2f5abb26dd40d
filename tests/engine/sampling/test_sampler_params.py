"""SamplingParams: what is refused, and what an open field means."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from atb_models.errors import RequestError
from atb_models.sampling_params import SamplingParams

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "field, values",
    [
        ("max_tokens", [0, -1, 1.5, "3", True]),
        ("temperature", [-0.1, NAN, INF, 10**400, "1", True]),
        ("top_k", [-2, 1.0, "5", False]),
        ("top_p", [0, 0.0, -0.5, 1.01, NAN, "0.9"]),
        ("min_p", [-0.1, 1.1, NAN]),
        ("repetition_penalty", [0, -1, INF, NAN]),
        ("presence_penalty", [-2.1, 2.1, NAN]),
        ("frequency_penalty", [-2.1, 2.1, "x"]),
        ("seed", [1.0, "1", True]),
        ("stop", ["", ["a", ""], [3], 3]),
        ("stop_token_ids", [[-1], ["a"], "12", 7, [1.0], [True]]),
        ("logprob_token_ids", [[-1], ["a"], "12", 7, [1.0], [True]]),
        ("ignore_eos", [1, None, "yes"]),
        ("logprobs", [-1, 1.0, True]),
        ("prompt_logprobs", [-1, 1.0, True]),
    ],
)
def test_bad_values_are_refused_by_name_and_value(field: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(RequestError, match=f"^{field} must be") as caught:
            SamplingParams(**{field: value})
        shown = value[-1] if field.endswith("token_ids") and isinstance(value, list) else value
        assert repr(shown) in str(caught.value)


def test_ranges_are_named() -> None:
    with pytest.raises(RequestError, match=r"top_p must be a number in \(0, 1\], not 1.5"):
        SamplingParams(top_p=1.5)
    with pytest.raises(RequestError, match=r"temperature must be a number in \[0, 10000\], not -1"):
        SamplingParams(temperature=-1)
    with pytest.raises(RequestError, match="max_tokens must be a whole number of 1 or more, not 0"):
        SamplingParams(max_tokens=0)


def test_the_bounds_themselves_and_numpy_numbers_are_taken() -> None:
    lowest = {"max_tokens": 1, "temperature": 0, "top_k": -1, "min_p": 0, "presence_penalty": -2, "logprobs": 0}
    others = {"top_p": 1, "min_p": 1, "top_k": 0, "frequency_penalty": 2, "repetition_penalty": 1e-3, "seed": -(2**80)}
    for bounds in (lowest, others):
        params = SamplingParams(**bounds)
        assert {name: getattr(params, name) for name in bounds} == bounds
    assert SamplingParams(stop=[], stop_token_ids=[]) == SamplingParams()
    params = SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0.5), stop_token_ids=np.array([1, 2]))
    assert (params.max_tokens, params.temperature, params.stop_token_ids) == (3, 0.5, (1, 2))


@pytest.mark.parametrize(
    "bias, message",
    [
        ([1, 2], r"logit_bias must be a mapping of token ids to numbers, not \[1, 2\]"),
        ("5", "logit_bias must be a mapping of token ids to numbers, not '5'"),
        *(
            ({key: 1.0}, f"token ids of logit_bias must be whole numbers of 0 or more, not {key!r}")
            for key in (-1, "-1", "", "a", "1.0", " 1", "1_0", "\u0663", 1.0, True, None, "9" * 5000)
        ),
        *(
            ({5: value}, rf"logit_bias of token id 5 must be a number in \[-100, 100\], not {value!r}")
            for value in (100.1, -101, NAN, INF, "1", True, None, 10**400)
        ),
        ({5: 1.0, "5": 1.0}, "logit_bias has token id 5 twice, as a number and as a text; give it once"),
        ({"05": 1.0, "5": 1.0}, "logit_bias has token id 5 twice"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_bias_is_refused_by_token_and_value(bias: object, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        SamplingParams(logit_bias=bias)


def test_a_bias_is_kept_by_numbers() -> None:
    params = SamplingParams(logit_bias={"17": 1, np.int64(3): np.float32(-2.5), 0: -100})
    assert params.logit_bias == params.biases == {17: 1.0, 3: -2.5, 0: -100.0}
    assert SamplingParams(logit_bias={}) == SamplingParams() and SamplingParams().biases == {}
    assert params.resolve({"top_p": 0.5}).logit_bias == params.logit_bias
    assert params == SamplingParams(logit_bias=params.logit_bias) != SamplingParams(logit_bias={17: 1})
    assert hash(params) == hash(SamplingParams(logit_bias=params.logit_bias))
    given = {5: 1.0}
    params = SamplingParams(logit_bias=given)
    given[6] = 2.0
    assert params.biases == {5: 1.0}


def test_stop_becomes_a_tuple() -> None:
    assert SamplingParams(stop="ab").stop == SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams(stop=["ab", "c"]).stop == ("ab", "c")
    assert SamplingParams().stop == SamplingParams().stop_token_ids == ()
    assert SamplingParams(stop_token_ids=[3]).stop_token_ids == (3,)
    assert SamplingParams(logprob_token_ids=np.array([3])).logprob_ids == (3,) and not SamplingParams().wants_logprobs
    assert hash(SamplingParams(stop=["a"])) == hash(SamplingParams(stop="a"))


def test_open_fields_are_greedy_without_filters() -> None:
    resolved = SamplingParams(max_tokens=4).resolve({})
    assert resolved.is_plain_greedy and resolved.max_tokens == 4
    assert dataclasses.asdict(resolved) == dataclasses.asdict(SamplingParams(max_tokens=4)) | {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def test_the_request_wins_over_the_checkpoint_and_that_over_the_default() -> None:
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05, "x": 1}
    resolved = SamplingParams(top_p=0.5, repetition_penalty=1.0).resolve(generation)
    assert (resolved.temperature, resolved.top_k, resolved.top_p) == (0.7, 20, 0.5)
    assert resolved.repetition_penalty == 1.0 and resolved.min_p == 0.0 and not resolved.has_penalties
    assert SamplingParams(temperature=0).resolve(generation).temperature == 0


@pytest.mark.parametrize(
    "generation, temperature",
    [
        ({}, 0.0),
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"temperature": 0.3}, 0.3),
        ({"temperature": None, "top_p": None}, 0.0),
    ],
)
def test_do_sample(generation: dict[str, object], temperature: float) -> None:
    assert SamplingParams().resolve(generation).temperature == temperature
    assert SamplingParams(temperature=0.9).resolve(generation).temperature == 0.9


def test_a_bad_generation_config_is_named() -> None:
    with pytest.raises(RequestError, match=r"generation_config.json: top_p must be .* not 7"):
        SamplingParams().resolve({"top_p": 7})
    assert SamplingParams(top_p=0.5).resolve({"top_p": 7}).top_p == 0.5


def test_what_counts_as_plain_greedy() -> None:
    for fields in (
        {"temperature": 0.1},
        {"logprobs": 0},
        {"logprob_token_ids": [1]},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"logit_bias": {3: 1.0}},
    ):
        assert not SamplingParams(**fields).resolve({}).is_plain_greedy
    assert SamplingParams(top_k=5, top_p=0.5, seed=1, stop="x", prompt_logprobs=1).resolve({}).is_plain_greedy
