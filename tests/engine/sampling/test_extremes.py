"""The ends of the ranges of sampling fields, beyond them, and all together: in Python, as flags and over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atb_models import LLM, SamplingParams
from atb_models.errors import RequestError
from tests.server.running import Running, running

HUGE = 10**5000  # more digits than Python writes
OUTSIDE = [
    ("repetition_penalty", 1e39, "[0.0001, 10000]"),
    ("repetition_penalty", 1e4 + 1, "[0.0001, 10000]"),
    ("repetition_penalty", 1e-46, "[0.0001, 10000]"),
    ("repetition_penalty", 0, "[0.0001, 10000]"),
    ("temperature", 1e39, "[0, 10000]"),
    ("temperature", 1e4 + 1, "[0, 10000]"),
    ("presence_penalty", 1e39, "[-2, 2]"),
    ("frequency_penalty", -1e39, "[-2, 2]"),
    ("top_p", 1e39, "(0, 1]"),
    ("min_p", 1e39, "[0, 1]"),
]
IN_PYTHON = [*OUTSIDE, *((name, HUGE, allowed) for name, _, allowed in OUTSIDE[::2])]
# Of form, path, body and where its sampling fields stand. Triton's are MindIE's.
FORMS = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "x"}]}, None),
    "/v1/completions": ({"prompt": "x"}, None),
    "/generate": ({"prompt": "x"}, None),
    "/": ({"inputs": "x"}, "parameters"),
    "/infer": ({"inputs": "x"}, "parameters"),
    "/infer_token": ({"input_id": [5]}, "parameters"),
    "/v2/models/demo/generate": ({"text_input": "x"}, "parameters"),
}  # fmt: skip
# Small numbers that float32 rounds to 0 mean what they tend to; the values beside them say it in plain.
TENDS_TO: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 1e-46}, {"temperature": 0}),
    ({"temperature": 5e-324}, {"temperature": 0}),
    ({"temperature": 1.0, "top_p": 5e-324}, {"temperature": 0}),
    ({"temperature": 1.0, "min_p": 5e-324}, {"temperature": 1.0}),
    ({"temperature": 1.0, "min_p": 1.0}, {"temperature": 0}),
]
ENDS: list[dict[str, Any]] = [
    {"repetition_penalty": penalty, "temperature": temperature, "presence_penalty": most, "frequency_penalty": most,
     "logit_bias": {1: 100, 2: -100}, "logprobs": 2, "min_p": min_p}
    for penalty in (1e-4, 1e4) for temperature in (0, 1e-46, 1e4) for most in (-2, 2) for min_p in (0, 1)
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "allowed"), IN_PYTHON, ids=lambda value: str(value)[:12] if value != HUGE else ""
)
def test_what_is_outside_is_refused_with_its_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value})
    assert str(caught.value).startswith(f"{name} must be a number in {allowed}, not ")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="cpu", max_seq_len=128, max_batch_size=32) as llm:
        yield llm


def tokens(llm: LLM, **fields: Any) -> list[int]:
    params = SamplingParams(max_tokens=8, seed=3, ignore_eos=True, **fields)
    return llm.generate([[1, 2, 3]], params)[0].token_ids


@pytest.mark.parametrize(("tiny", "plain"), TENDS_TO, ids=str)
def test_a_number_that_rounds_to_0_is_its_limit(llm: LLM, tiny: dict[str, Any], plain: dict[str, Any]) -> None:
    assert tokens(llm, **tiny) == tokens(llm, **plain)


def test_the_ends_of_all_ranges_together_leave_numbers(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    """An infinity that met another would be NaN, which is warned of, and its token is never one of the best."""
    params = [SamplingParams(max_tokens=8, seed=3, ignore_eos=True, **one) for one in ENDS]
    outputs = llm.generate([[1, 2, 3]] * len(ENDS), params)
    assert [len(one.token_ids) for one in outputs] == [8] * len(ENDS)
    assert not caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {HUGE: 1}},
        {"logit_bias": {10**19: 1}},
        {"logprob_token_ids": [HUGE]},
        {"stop_token_ids": [1, HUGE]},
        {"stop_token_ids": [2**70]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_ids_beyond_every_vocabulary(llm: LLM, fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(RequestError, match=f"^{name} has token id .*; ids go from 0 to"):
        tokens(llm, **fields)
    with pytest.raises(RequestError, match="^the prompt has token id a number of about 4983 digits; ids go from 0"):
        llm.generate([[HUGE]])


@pytest.mark.parametrize(("name", "value", "allowed"), OUTSIDE[::3])
@pytest.mark.parametrize("command", ["run", "launch", "chat"])
def test_flags(root: Path, clean_environ: None, command: str, name: str, value: float, allowed: str) -> None:
    line = [sys.executable, "-m", "atb_models", command, f"--{name}={value}"]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(line, env=environ, input="", capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith(f"atb-models: error: --{name} must be a number in {allowed}, not {float(value)!r}\n")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running("--device", "cpu", "--max_batch_size", "1") as one:
        yield one


@pytest.mark.parametrize("path", FORMS)
def test_every_form_refuses_with_field_and_bound(server: Running, path: str) -> None:
    body, inner = FORMS[path]
    for name, value, allowed in OUTSIDE:
        if inner is not None and name in ("presence_penalty", "min_p"):  # not of these forms
            continue
        told = server.json(path, body | ({name: value} if inner is None else {inner: {name: value}}), status=422)
        low, high = allowed[1:-1].split(", ")
        assert name in str(told) and (high if value > 1 else low) in str(told), told
