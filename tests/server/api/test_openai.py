"""OpenAI's endpoints through the official client, against `LLM` in this process."""

from __future__ import annotations

import math
from typing import Any

import pytest

from atb_models import LLM, SamplingParams
from tests.server.running import Running

openai = pytest.importorskip("openai", reason="needs openai: pip install -e .[test]")

TURN = [{"role": "user", "content": "What is the capital of France?"}]


def client_of(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def greedy(llm: LLM, prompt: str, max_tokens: int, **others: Any) -> Any:
    return llm.generate([prompt], SamplingParams(max_tokens=max_tokens, **others))[0]


def test_chat(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.chat([TURN], SamplingParams(max_tokens=12))
    reply = client_of(any_server).chat.completions.create(model="demo", messages=TURN, max_tokens=12)
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert (reply.object, reply.model, choice.finish_reason) == ("chat.completion", "demo", expected.finish_reason)
    assert reply.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert reply.usage.completion_tokens == len(expected.token_ids)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_stream(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.chat([TURN], SamplingParams(max_tokens=12))
    stream = client_of(any_server).chat.completions.create(
        model="demo", messages=TURN, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [expected.finish_reason]
    assert (last.choices, last.usage.completion_tokens) == ([], len(expected.token_ids))
    assert len({chunk.id for chunk in chunks} | {last.id}) == 1


def test_the_stream_ends_with_done(server: Running) -> None:
    body = {"messages": TURN, "max_tokens": 2, "stream": True}
    *chunks, done = server.events("/v1/chat/completions", body)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks), "nobody asked for it"


def test_timings_and_cached_tokens(server: Running) -> None:
    body = {"prompt": "A long enough prompt: " + "one two three four five " * 60, "max_tokens": 3}
    server.json("/v1/completions", body)
    reply = server.json("/v1/completions", body)
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128
    timings = reply["timings"]
    assert 0 <= timings["queue_s"] <= timings["first_token_s"] <= timings["total_s"] < 60
    rate = 2 / (timings["total_s"] - timings["first_token_s"])
    assert timings["tokens_per_s"] == pytest.approx(rate, rel=0.01)


def test_chat_logprobs(server: Running, llm: LLM) -> None:
    (expected,) = llm.chat([TURN], SamplingParams(max_tokens=4, logprobs=3))
    reply = client_of(server).chat.completions.create(
        model="demo", messages=TURN, max_tokens=4, logprobs=True, top_logprobs=3
    )
    content = reply.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == expected.text
    for token, token_id, known in zip(content, expected.token_ids, expected.logprobs, strict=True):
        assert token.logprob == pytest.approx(known[token_id], abs=1e-4)
        best = sorted(known.values(), reverse=True)[:3]
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best, abs=1e-4)


def test_completion_of_texts(any_server: Running, llm: LLM) -> None:
    prompts = ["The capital of", "你好"]
    reply = client_of(any_server).completions.create(model="demo", prompt=prompts, max_tokens=6, n=2)
    texts = [greedy(llm, prompt, 6).text for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in reply.choices] == texts
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage.prompt_tokens == sum(len(greedy(llm, prompt, 1).prompt_token_ids) for prompt in prompts)


def test_completion_of_token_ids(server: Running, llm: LLM) -> None:
    ids = greedy(llm, "The capital of", 1).prompt_token_ids
    text = greedy(llm, "The capital of", 6).text
    one = client_of(server).completions.create(model="demo", prompt=ids, max_tokens=6)
    two = client_of(server).completions.create(model="demo", prompt=[ids, ids], max_tokens=6)
    assert [choice.text for choice in [*one.choices, *two.choices]] == [text] * 3


def test_completion_stream(any_server: Running, llm: LLM) -> None:
    prompts = ["The capital of", "你好"]
    stream = client_of(any_server).completions.create(model="demo", prompt=prompts, max_tokens=6, stream=True)
    texts, reasons = ["", ""], ["", ""]
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or ""
    expected = [greedy(llm, prompt, 6) for prompt in prompts]
    assert texts == [output.text for output in expected]
    assert reasons == [output.finish_reason for output in expected]


def test_a_completion_has_16_tokens_unless_asked(server: Running) -> None:
    reply = server.json("/v1/completions", {"prompt": "The", "ignore_eos": True})
    assert reply["usage"]["completion_tokens"] == 16


def test_the_same_seed_gives_the_same_choices_which_differ(server: Running) -> None:
    body = {"prompt": "Once", "max_tokens": 12, "n": 3, "seed": 7, "temperature": 1.5}
    first, second = (server.json("/v1/completions", body) for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in second["choices"]]
    assert len(set(texts)) == 3


def test_completion_logprobs(server: Running, llm: LLM) -> None:
    expected = greedy(llm, "The capital of", 5, logprobs=2)
    reply = server.json("/v1/completions", {"prompt": "The capital of", "max_tokens": 5, "logprobs": 2})
    known = reply["choices"][0]["logprobs"]
    values = [at[token_id] for at, token_id in zip(expected.logprobs, expected.token_ids, strict=True)]
    assert known["token_logprobs"] == pytest.approx(values, abs=1e-4)
    for offset, token in zip(known["text_offset"], known["tokens"], strict=True):
        assert expected.text.startswith(token, offset)
    for top, best in zip(known["top_logprobs"], expected.logprobs, strict=True):
        assert sorted(top.values()) == pytest.approx(sorted(best.values())[-2:], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_of_the_prompt(server: Running, llm: LLM, stream: bool) -> None:
    prompt = "你好 The capital"
    expected = greedy(llm, prompt, 2, logprobs=1, prompt_logprobs=1)
    body = {"prompt": prompt, "max_tokens": 2, "echo": True, "logprobs": 1, "stream": stream}
    if stream:
        pieces = [chunk["choices"][0] for chunk in server.events("/v1/completions", body)[:-1]]
    else:
        pieces = server.json("/v1/completions", body)["choices"]
    text = "".join(piece["text"] for piece in pieces)
    assert text == prompt + expected.text
    values = [value for piece in pieces for value in piece["logprobs"]["token_logprobs"]]
    places = [place for piece in pieces for place in piece["logprobs"]["text_offset"]]
    tokens = [token for piece in pieces for token in piece["logprobs"]["tokens"]]
    ids, known = expected.prompt_token_ids + expected.token_ids, expected.prompt_logprobs + expected.logprobs
    assert values[0] is None and known[0] is None
    assert values[1:] == pytest.approx([at[i] for at, i in zip(known[1:], ids[1:], strict=True)], abs=1e-3)
    assert all(text.startswith(token, place) for token, place in list(zip(tokens, places, strict=True))[1:])


def test_a_prompt_alone_is_scored(server: Running) -> None:
    """What harnesses do that compare answers by their likelihood."""
    body = {"prompt": "The capital of France", "max_tokens": 0, "echo": True, "logprobs": 0}
    reply = server.json("/v1/completions", body)
    (choice,) = reply["choices"]
    assert choice["text"] == "The capital of France"
    assert len(choice["logprobs"]["tokens"]) == reply["usage"]["prompt_tokens"]
    assert reply["usage"]["completion_tokens"] == 0
    assert math.isfinite(sum(choice["logprobs"]["token_logprobs"][1:]))


def test_models(any_server: Running) -> None:
    client = client_of(any_server)
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here; this service has 'demo'"):
        client.models.retrieve("gpt-4")


def test_neutral_fields_of_clients_are_taken(server: Running) -> None:
    client = client_of(server)
    reply = client.chat.completions.create(
        model="demo", messages=TURN, max_completion_tokens=2, n=1, user="u", store=False, metadata={}, logit_bias={},
        response_format={"type": "text"}, tools=[], tool_choice="none", parallel_tool_calls=True, stop=None,
        service_tier="auto", modalities=["text"],
    )  # fmt: skip
    again = [*TURN, reply.choices[0].message.model_dump(), {"role": "user", "content": [{"type": "text", "text": "x"}]}]
    assert client.chat.completions.create(model="demo", messages=again, max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(
    "field, value",
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": 1}),
        ("top_logprobs", 2),
        ("store", True),
        ("modalities", ["audio"]),
        ("best_of", 2),
        ("stream_options", {"include_usage": True}),
        ("nonsense", 0),
    ],
)
def test_fields_without_support_are_refused_by_name(server: Running, field: str, value: Any) -> None:
    with pytest.raises(openai.APIStatusError) as info:
        client_of(server).chat.completions.create(model="demo", messages=TURN, extra_body={field: value})
    assert info.value.status_code in (400, 422)
    assert info.value.param.split(".")[0] == field and field in info.value.message
    assert info.value.type == "invalid_request_error"
