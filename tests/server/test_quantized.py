"""The service, the batch command and the chat answer with int8 weights or an int8 KV cache where flags ask for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import LLM, SamplingParams
from tests.server.running import running

STORED = [{"quantize": "w8a16"}, {"kv_dtype": "int8"}]
PROMPT = "Once upon a time there was a mill beside a river"
BODY = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": 1}


def flags(stored: dict[str, str]) -> list[str]:
    return ["--device", "cpu", *(word for name, value in stored.items() for word in (f"--{name}", value))]


def logprobs(stored: dict[str, str]) -> list[float]:
    """Of the tokens that the engine generates."""
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=1)
    with LLM(device="cpu", **stored) as llm:
        (output,) = llm.generate([PROMPT], params)
    assert output.logprobs is not None
    return [found[token] for token, found in zip(output.token_ids, output.logprobs, strict=True)]


@pytest.fixture(scope="module", params=STORED, ids=lambda stored: next(iter(stored)))
def asked(request: pytest.FixtureRequest) -> tuple[list[str], list[float]]:
    """Flags, and what is expected of them, which is not that of 16 bits."""
    int8, floats = logprobs(request.param), logprobs({})
    assert max(abs(a - b) for a, b in zip(int8, floats, strict=True)) > 1e-3
    return flags(request.param), int8


def test_the_service(asked: tuple[list[str], list[float]]) -> None:
    words, expected = asked
    with running(*words) as server:
        choice = server.json("/v1/completions", BODY)["choices"][0]
        info = server.json("/info")
    assert (info["model_dtype"], info["model_quantization"]) == ("fp16", "w8a16" if "w8a16" in words else None)
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-6)


def test_a_batch(asked: tuple[list[str], list[float]], tmp_path: Path, root: Path) -> None:
    words, expected = asked
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": BODY}) + "\n")
    command = [sys.executable, "-m", "atb_models", "batch", str(source), str(target), *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    choice = json.loads(target.read_text())["response"]["body"]["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("stored", STORED)
def test_a_chat(stored: dict[str, str], root: Path) -> None:
    command = [sys.executable, "-m", "atb_models", "chat", *flags(stored)]
    question = "Who is the CEO of Google?\n"
    done = subprocess.run(command, cwd=root, input=question, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Sundar Pichai is the CEO of Google." in done.stdout
