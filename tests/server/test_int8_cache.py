"""The service, the batch command and the chat answer over an int8 KV cache where --kv_dtype asks for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import LLM, SamplingParams
from tests.server.running import running

INT8 = ("--device", "cpu", "--kv_dtype", "int8")
PROMPT = "Once upon a time there was a mill beside a river"
BODY = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": 1}


def logprobs(kv_dtype: str) -> list[float]:
    """Of the tokens that the engine generates."""
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=1)
    with LLM(device="cpu", kv_dtype=kv_dtype) as llm:
        (output,) = llm.generate([PROMPT], params)
    assert output.logprobs is not None
    return [found[token] for token, found in zip(output.token_ids, output.logprobs, strict=True)]


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """Not those of a cache of 16 bit."""
    int8, floats = logprobs("int8"), logprobs("auto")
    assert max(abs(a - b) for a, b in zip(int8, floats, strict=True)) > 1e-3
    return int8


def test_the_service(expected: list[float]) -> None:
    with running(*INT8) as server:
        choice = server.json("/v1/completions", BODY)["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-6)


def test_a_batch(expected: list[float], tmp_path: Path, root: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": BODY}) + "\n")
    command = [sys.executable, "-m", "atb_models", "batch", str(source), str(target), *INT8]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    choice = json.loads(target.read_text())["response"]["body"]["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-6)


def test_a_chat(root: Path) -> None:
    command = [sys.executable, "-m", "atb_models", "chat", *INT8]
    asked = "Who is the CEO of Google?\n"
    done = subprocess.run(command, cwd=root, input=asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Sundar Pichai is the CEO of Google." in done.stdout
