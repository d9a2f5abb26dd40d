"""POST /: the tutorials' curl and Python, as they are printed, and the choice between the two forms of a body."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from atb_models import LLM, SamplingParams
from atb_models.server.args import parse_args
from tests.server.running import Running

QUESTION = "你好,你是谁？"


@pytest.fixture(scope="session")
def tutorial(shared: Path) -> str:
    (path,) = (shared / "seeds").glob("001_*.txt")
    return path.read_text("utf-8")


def expected_text(llm: LLM) -> str:
    return llm.chat([[{"role": "user", "content": QUESTION}]], SamplingParams(max_tokens=100))[0].text


def test_the_port_is_the_tutorials() -> None:
    assert parse_args([]).port == 6006


def test_the_answer(any_server: Running, llm: LLM) -> None:
    reply = any_server.json("/", {"prompt": QUESTION, "max_length": 100})
    time = datetime.strptime(reply.pop("time"), "%Y-%m-%d %H:%M:%S")
    assert abs(datetime.now() - time) < timedelta(seconds=30)
    assert reply == {"response": expected_text(llm), "status": 200}


def test_the_printed_curl(any_server: Running, llm: LLM, tutorial: str) -> None:
    (command,) = re.findall(r"```shell\n(curl -X POST.*?)```", tutorial, re.DOTALL)
    command = command.replace(":6006", f":{any_server.address[1]}")
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert json.loads(result.stdout)["response"] == expected_text(llm), result.stderr


def test_the_printed_python(any_server: Running, llm: LLM, tutorial: str) -> None:
    pytest.importorskip("requests", reason="needs requests: pip install -e .[test]")
    (code,) = re.findall(r"```python\n(import requests.*?)```", tutorial, re.DOTALL)
    code = code.replace(":6006", f":{any_server.address[1]}")
    result = subprocess.run([sys.executable, "-X", "utf8", "-c", code], capture_output=True, timeout=60)
    assert result.stdout.decode() == expected_text(llm) + "\n", result.stderr.decode()


def test_max_length_counts_new_tokens(server: Running, llm: LLM) -> None:
    (expected,) = llm.chat([[{"role": "user", "content": QUESTION}]], SamplingParams(max_tokens=3))
    assert server.json("/", {"prompt": QUESTION, "max_length": 3})["response"] == expected.text


@pytest.mark.parametrize("path", ["/", "/generate"])
@pytest.mark.parametrize("body", [{}, {"prompt": "x", "inputs": "x"}, [], "x", None])
def test_neither_or_both_forms(server: Running, path: str, body: object) -> None:
    response, data = server.request("POST", path, json.dumps(body).encode())
    assert response.status == 422
    if isinstance(body, dict):
        assert "either prompt or inputs" in json.loads(data)["error"]


def test_the_forms_do_not_mix(server: Running) -> None:
    assert "max_tokens" in server.json("/", {"prompt": "x", "max_tokens": 3}, status=422)["error"]
    assert "max_length" in server.json("/", {"inputs": "x", "max_length": 3}, status=422)["error"]
