"""What goes wrong has its status, names what is wrong, and says nothing of the machine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from atb_models.server.api.mindie import InferTokenBody
from atb_models.server.api.openai.chat import ChatBody
from atb_models.server.api.openai.completions import CompletionBody
from atb_models.server.api.tokens import DetokenizeBody
from tests.server.running import Running

CHAT = "/v1/chat/completions"
TURN = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "path, body, status, words",
    [
        ("/v1/completions", {}, 422, "prompt"),
        ("/v1/completions", {"prompt": []}, 422, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "3"}, 422, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": True}, 422, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, 422, "temperature"),
        ("/v1/completions", {"prompt": "x", "seed": 1 << 70}, 422, "seed"),
        ("/v1/completions", {"prompt": "x", "stop": ""}, 422, "stop"),
        ("/v1/completions", {"prompt": [7] * 9000}, 400, "9000 tokens, but max_seq_len 8192"),
        ("/v1/completions", {"prompt": [99999]}, 400, "99999"),
        ("/v1/completions", {"prompt": ["x"] * 1000, "n": 100}, 400, "100000 requests"),
        ("/v1/completions", {"prompt": "x", "model": "gpt-4"}, 404, "'gpt-4'"),
        (CHAT, {"messages": TURN, "max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "wizard"),
        (CHAT, {"messages": [{"role": "user"}]}, 422, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 422, "messages.0.content.0.type"),
        (CHAT, {"messages": TURN, "tools": [{"type": "function"}]}, 422, "tools: is not supported"),
        ("/v1/completions", {"prompt": ["x", 1]}, 422, "prompt.1: Input should be a valid string"),
        ("/v1/completions", {"prompt": [1, "x"]}, 422, "prompt.1: Input should be a valid integer"),
        ("/v1/completions", {"prompt": 1}, 422, "prompt: Input should be a valid string, or Input should be a valid"),
        ("/v1/completions", {"prompt": "x", **{f"a{i}": 1 for i in range(300)}}, 422, "301 fields"),
        ("/generate", {"prompt": "x", "logprobs": 1}, 422, "logprobs: is not supported"),
        ("/", {"prompt": "x", "history": [["a", "b"]]}, 422, "history: is not supported"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "name": "n"}]}, 400, "name"),
        ("/detokenize", {"tokens": [-1]}, 422, "tokens.0"),
        ("/detokenize", {"tokens": [5, 2496]}, 422, "no token id 2496; ids go from 0 to 2495"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_bodies(server: Running, path: str, body: Any, status: int, words: str) -> None:
    error = server.json(path, body, status=status)["error"]
    assert words in (error["message"] if path.startswith("/v1/") else error)


@pytest.mark.parametrize(
    "body, wrong",
    [
        (DetokenizeBody, {"tokens": ["x"] * 9}),
        (InferTokenBody, {"input_id": ["x"] * 9}),
        (CompletionBody, {"prompt": [[1], *["x"] * 9]}),
        (CompletionBody, {"prompt": "x", "stop_token_ids": ["x"] * 9}),
        (ChatBody, {"messages": [3] * 9}),
        (ChatBody, {"messages": [{"role": "user", "content": [3] * 9}]}),
    ],
)
def test_not_every_wrong_item_of_a_list_is_told(body: type[BaseModel], wrong: Any) -> None:
    """A million of them would take 20 s, in which nobody else is served."""
    with pytest.raises(ValidationError) as info:
        body.model_validate(wrong)
    assert info.value.error_count() < 9


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_by_the_engine_has_a_status_in_streams_too(server: Running, stream: bool) -> None:
    response, data = server.request(
        "POST", CHAT, {"messages": [{"role": "user", "content": "x " * 9000}], "stream": stream}
    )
    assert response.status == 400
    assert json.loads(data)["error"]["code"] == 400


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'"\xed\xa0\x80"', b"[" * 100_000, b"1" * 5000, b"NaN", b"null"])
@pytest.mark.parametrize("path", ["/", "/v1/completions", "/infer"])
def test_no_json(server: Running, path: str, data: bytes) -> None:
    response, reply = server.request("POST", path, data)
    assert response.status in (400, 422)
    text = reply.decode()
    assert "error" in json.loads(text) and "Traceback" not in text and ".py" not in text and "/tmp" not in text


def test_json_under_another_name(server: Running) -> None:
    """What curl -d sends without a header."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response, reply = server.request("POST", "/", b'{"prompt": "x"}', headers)
    assert response.status == 422
    assert "send the body with Content-Type: application/json" in json.loads(reply)["error"]


def test_a_wrong_method(server: Running) -> None:
    response, _ = server.request("GET", "/v1/completions")
    assert response.status == 405


def test_the_two_forms(server: Running) -> None:
    plain = server.json("/infer", {"inputs": 3}, status=422)
    assert set(plain) == {"error", "error_type"}
    error = server.json("/v1/completions", {"prompt": 3}, status=422)["error"]
    assert set(error) == {"message", "type", "param", "code"}
