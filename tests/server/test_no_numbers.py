"""A model with logits that are no finite numbers, over HTTP: strict JSON everywhere, errors where nothing can come."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from atb_models.outputs import LEAST_LOGPROB
from atb_models.text.tokenizer import load_tokenizer
from tests.server.raw import at_rest, values, wait_for
from tests.server.running import Running, running

NAN = float("nan")
GOOD, BAD = "Who is the CEO of Google?", "Who is the CEO of Google & Co?"  # "&" has no embedding that is a number
WHY = "not one of the model's logits"
EVENTS = "text/event-stream"


def _bodies(text: str, *, stream: bool) -> dict[str, dict[str, Any]]:
    """By path a body that asks for all log-probabilities that its form knows."""
    user = [{"role": "user", "content": text}]
    shown = {} if stream else {"decoder_input_details": True}
    tgi = {"inputs": text, "parameters": {"max_new_tokens": 4, "top_n_tokens": 20, "details": True, **shown}}
    mindie = {"parameters": {"max_new_tokens": 4, "details": True}}
    flag = {"stream": True} if stream else {}
    bodies = {
        "/v1/chat/completions": {"messages": user, "max_tokens": 4, "logprobs": True, "top_logprobs": 20, **flag},
        "/v1/completions": {"prompt": text, "max_tokens": 4, "logprobs": 20, "echo": True, **flag},
        "/": tgi | flag,
        "/generate": tgi | flag,
        "/infer": {"inputs": text, **mindie, **flag},
    }
    if stream:
        return bodies | {
            "/generate_stream": tgi,
            "/v2/models/spoilt/generate_stream": {"text_input": text, **mindie},
        }
    return bodies | {"/v2/models/spoilt/generate": {"text_input": text, **mindie}}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> Iterator[Running]:
    """The embedded checkpoint, but no logit of "~" is a number, nor any after "&"."""
    folder = tmp_path_factory.mktemp("models") / "spoilt"
    shutil.copytree(demo, folder)
    tokenizer = load_tokenizer(demo)
    assert tokenizer is not None
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][tokenizer.encode("Google &", False)[-1]] = NAN
    tensors["lm_head.weight"][tokenizer.encode("~", False)[-1]] = NAN
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with running("--model_path", str(folder), "--max_batch_size", "4") as server:
        yield server
        wait_for(lambda: at_rest(server))
        assert server.log.count("no finite numbers") == 1 and "Traceback" not in server.log


def strict(data: bytes | str) -> Any:
    """JSON without NaN and infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON: {data!r}")

    return json.loads(data, parse_constant=refuse)


def _events(server: Running, path: str, body: Any) -> list[Any]:
    """The events of a stream that ends as HTTP wants it: http.client raises IncompleteRead for a cut one.

    A model that fails before the answer has begun, which is a matter of microseconds, is an error with its own status.
    """
    response, data = server.request("POST", path, body)
    if response.status == 500:
        return [strict(data)]
    assert response.status == 200 and response.headers["content-type"].startswith(EVENTS), (path, data)
    texts = data.decode().removesuffix("\n\n").split("\n\n")
    return [strict(text[6:]) if text[6] == "{" else text[6:] for text in texts]


@pytest.mark.parametrize("path", _bodies("", stream=False))
def test_a_whole_answer(spoilt: Running, path: str) -> None:
    response, data = spoilt.request("POST", path, _bodies(GOOD, stream=False)[path])
    assert response.status == 200, data
    assert "Sundar" in str(strict(data))
    response, data = spoilt.request("POST", path, _bodies(BAD, stream=False)[path])
    assert response.status == 500 and WHY in str(strict(data)["error"]), data
    assert "internal_error" in str(strict(data))


@pytest.mark.parametrize("path", _bodies("", stream=True))
def test_a_stream(spoilt: Running, path: str) -> None:
    assert "Sund" in str(_events(spoilt, path, _bodies(GOOD, stream=True)[path]))
    last = _events(spoilt, path, _bodies(BAD, stream=True)[path])[-1]
    assert WHY in str(last["error"]) and "internal_error" in str(last)


def test_vllm_s_stream(spoilt: Running) -> None:
    response, data = spoilt.request("POST", "/generate", {"prompt": BAD, "stream": True})
    if response.status == 200:
        assert data.endswith(b"\0")
    assert WHY in strict(data.rstrip(b"\0").split(b"\0")[-1])["error"]


def test_others_go_on_and_the_metrics_count(spoilt: Running) -> None:
    before = values(spoilt)
    bodies = [_bodies(text, stream=False)["/v1/completions"] for text in (GOOD, BAD)]
    error = spoilt.json("/v1/completions", bodies[0] | {"prompt": [GOOD, BAD]}, status=500)["error"]
    assert WHY in error["message"] and error["type"] == "internal_error"
    answer = spoilt.json("/v1/completions", bodies[0])["choices"][0]
    assert "Sundar" in answer["text"]
    now = values(spoilt)
    assert now["request_success_total"] - before["request_success_total"] >= 1
    assert now["request_failed_total"] - before["request_failed_total"] >= 1


def test_a_token_without_a_number_has_the_least_probability(spoilt: Running) -> None:
    body = _bodies("a ~", stream=False)["/v1/completions"] | {"max_tokens": 0}
    logprobs = spoilt.json("/v1/completions", body)["choices"][0]["logprobs"]
    assert logprobs["tokens"][-1].strip() == "~" and logprobs["token_logprobs"][-1] == LEAST_LOGPROB
    assert all(value > LEAST_LOGPROB for value in logprobs["token_logprobs"][1:-1])


def test_an_event_that_cannot_be_made_ends_the_stream_with_an_error() -> None:
    """In each form that streams: whatever raises while an event is made."""
    import asyncio

    from atb_models.server.api.common import failure_event
    from atb_models.server.job import Job
    from atb_models.server.stream import EventStream

    class Endless:
        remaining_s = 60.0

        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            return None

    async def events() -> Any:
        yield b'data: {"a": 1}\n\n'
        raise ValueError("Out of range float values are not JSON compliant")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    job: Job = Endless()  # type: ignore[assignment]
    for path in ("/v1/chat/completions", "/generate_stream", "/infer", "/v2/models/m/generate_stream"):
        sent.clear()
        asyncio.run(EventStream(job, events(), failure_event(path), EVENTS)({"type": "http"}, receive, send))
        first, second, last = sent[0], sent[1], sent[-1]
        assert first["status"] == 200 and second["more_body"] and not last["more_body"]
        assert "internal error" in str(strict(last["body"].removeprefix(b"data: "))["error"])
        assert "compliant" not in str(sent)
