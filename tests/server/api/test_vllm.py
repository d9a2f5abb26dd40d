"""vLLM's form of /generate, and its /tokenize and /detokenize."""

from __future__ import annotations

import json
from typing import Any

import pytest

from atb_models import LLM, SamplingParams
from tests.server.running import Running

PROMPT = "The capital of"


def test_generate(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=5))
    reply = any_server.json("/generate", {"prompt": PROMPT, "max_tokens": 5, "n": 2, "temperature": 0})
    assert reply == {"text": [PROMPT + expected.text] * 2}


def test_stream_has_the_text_so_far(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=5))
    response, data = any_server.request("POST", "/generate", {"prompt": PROMPT, "max_tokens": 5, "stream": True})
    assert response.status == 200 and data.endswith(b"\0")
    texts = [json.loads(part)["text"][0] for part in data[:-1].split(b"\0")]
    assert texts[-1] == PROMPT + expected.text
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))


@pytest.mark.parametrize("field, value", [("use_beam_search", True), ("logprobs", 1), ("length_penalty", 2.0)])
def test_fields_without_support_are_refused_by_name(server: Running, field: str, value: Any) -> None:
    assert field in server.json("/generate", {"prompt": "x", field: value}, status=422)["error"]


def test_tokenize_and_back(server: Running, llm: LLM) -> None:
    assert llm.tokenizer is not None
    text = "你好, the capital 🐉"
    reply = server.json("/tokenize", {"prompt": text, "return_token_strs": True})
    assert reply["tokens"] == llm.tokenizer.encode(text)
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert server.json("/detokenize", {"tokens": reply["tokens"][1:]}) == {"prompt": text}
    plain = server.json("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert plain["tokens"] == reply["tokens"][1:]


def test_tokenize_a_conversation(server: Running, llm: LLM) -> None:
    assert llm.tokenizer is not None
    messages = [{"role": "user", "content": "你好"}]
    assert server.json("/tokenize", {"messages": messages})["tokens"] == llm.tokenizer.apply_chat_template(messages)
    body = {"messages": messages, "add_generation_prompt": False}
    assert server.json("/tokenize", body)["tokens"] == llm.tokenizer.apply_chat_template(messages, False)
    assert "prompt or messages" in server.json("/tokenize", {}, status=422)["error"]
