"""Fields that ask for nothing are taken, in every form of a body and inside of messages; the same fields with another
value are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.running import Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Who"}
# Path, a body, and where the fields of the form stand in it.
FORMS: list[tuple[str, dict[str, Any], str | None]] = [
    (CHAT, {"messages": [USER], "max_tokens": 2}, None),
    (COMPLETIONS, {"prompt": "Who", "max_tokens": 2}, None),
    ("/generate", {"prompt": "Who", "max_tokens": 2}, None),
    ("/generate", {"inputs": "Who"}, "parameters"),
    ("/generate_stream", {"inputs": "Who"}, "parameters"),
    ("/", {"inputs": "Who"}, "parameters"),
    ("/infer", {"inputs": "Who"}, "parameters"),
    ("/infer_token", {"input_id": [5]}, "parameters"),
    ("/v2/models/demo/generate", {"text_input": "Who"}, "parameters"),
    ("/v2/models/demo/generate_stream", {"text_input": "Who"}, "parameters"),
]
EVERYWHERE: dict[str, Any] = {
    "length_penalty": 1.0, "early_stopping": False, "use_beam_search": False, "include_stop_str_in_output": False,
    "skip_special_tokens": True, "spaces_between_special_tokens": True, "min_tokens": 0, "typical_p": 1.0,
    "watermark": False, "logit_bias": {}, "bad_words": [], "echo": False, "return_token_ids": False,
    "return_tokens_as_token_ids": False, "stop_token_ids": [], "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "min_p": 0.0, "repetition_penalty": 1.0, "top_p": 1.0, "top_k": -1, "ignore_eos": False, "stop": [], "n": 1,
    "best_of": 1,
}  # fmt: skip
NULLS = (
    "audio prediction web_search_options prompt_cache_retention guided_json guided_regex documents chat_template"
    " prompt_logprobs truncate_prompt_tokens mm_processor_kwargs cache_salt kv_transfer_params allowed_token_ids"
    " logits_processors structured_outputs thinking_token_budget never_heard_of temperature stop seed logprobs"
).split()
OTHERWISE: dict[str, Any] = {
    "length_penalty": 1.5, "early_stopping": True, "use_beam_search": True, "include_stop_str_in_output": True,
    "skip_special_tokens": False, "spaces_between_special_tokens": False, "min_tokens": 3, "typical_p": 0.5,
    "watermark": True, "bad_words": ["a"], "return_token_ids": True, "return_tokens_as_token_ids": True,
    "never_heard_of": 0,
}  # fmt: skip


def _with(body: dict[str, Any], place: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    return body | (fields if place is None else {place: {"max_new_tokens": 2} | fields})


def _status(server: Running, path: str, body: Any) -> int:
    return server.request("POST", path, body)[0].status


@pytest.mark.parametrize("path, body, place", FORMS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_form_takes_what_asks_for_nothing(
    server: Running, path: str, body: dict[str, Any], place: str | None
) -> None:
    assert _status(server, path, _with(body, place, EVERYWHERE)) == 200
    assert _status(server, path, _with(body, place, dict.fromkeys([*EVERYWHERE, *NULLS]))) == 200
    assert _status(server, path, body | dict.fromkeys(NULLS)) == 200, "beside the parameters"
    for name, value in OTHERWISE.items():
        response, data = server.request("POST", path, _with(body, place, {name: value}))
        where = name if place is None else f"{place}.{name}"
        assert response.status == 422 and f"{where}: is not" in data.decode(), (name, data)


@pytest.mark.parametrize("path, body, place", FORMS, ids=lambda value: value if isinstance(value, str) else "")
def test_whole_numbers_may_have_a_point(server: Running, path: str, body: dict[str, Any], place: str | None) -> None:
    tokens = "max_tokens" if place is None else "max_new_tokens"
    fields = {tokens: 4.0, "top_k": 3.0, "seed": 42.0, "temperature": 0.5}
    assert _status(server, path, _with(body, place, fields)) == 200
    for name in (tokens, "top_k", "seed"):
        response, data = server.request("POST", path, _with(body, place, {name: 4.5}))
        assert response.status == 422 and name in data.decode(), name
        response, data = server.request("POST", path, _with(body, place, {name: "4"}))
        assert response.status == 422 and name in data.decode(), name


def test_token_ids_may_have_a_point(server: Running) -> None:
    for prompt in ([5.0, 6], [[5.0, 6.0], [7]], [[5, 6], [7.0]]):
        assert _status(server, COMPLETIONS, {"prompt": prompt, "max_tokens": 1, "stop_token_ids": [3.0]}) == 200
    assert server.json("/detokenize", {"tokens": [1850.0, 277]}) == {"prompt": "Who is"}
    assert _status(server, "/infer_token", {"input_id": [5.0]}) == 200
    assert _status(server, COMPLETIONS, {"prompt": [5.5, 6]}) == 422
    deep: list[Any] = [5.0]
    for _ in range(500):
        deep = [deep]
    assert _status(server, COMPLETIONS, {"prompt": deep}) == 422


CHATS: dict[str, dict[str, Any]] = {
    "tools": {"tools": []},
    "tools and choice": {"tools": [], "tool_choice": "none"},
    "tools not to be called": {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    "functions not to be called": {"functions": [{"name": "f"}], "function_call": "none"},
    "choice": {"tool_choice": "auto"},
    "text": {"response_format": {"type": "text"}},
    "text with a schema of null": {"response_format": {"type": "text", "json_schema": None}},
    "no rivals": {"logprobs": False, "top_logprobs": 0},
    "no rivals of nothing": {"top_logprobs": 0},
    "no usage": {"stream": False, "stream_options": {"include_usage": False}},
    "no options": {"stream_options": {}},
    "usage": {"stream": True, "stream_options": {"include_usage": False, "continuous_usage_stats": False}},
    "no text parts asked": {"modalities": []},
    "labels": {"user": "", "metadata": {}, "store": False, "safety_identifier": ""},
    "documents": {"documents": [], "chat_template_kwargs": {}, "include_reasoning": True},
}


@pytest.mark.parametrize("fields", CHATS.values(), ids=list(CHATS))
def test_a_chat(server: Running, fields: dict[str, Any]) -> None:
    body = {"messages": [USER], "max_tokens": 2, "temperature": 0}
    assert _status(server, CHAT, body | fields) == 200
    if not fields.get("stream"):
        plain = server.json(CHAT, body)["choices"][0]["message"]
        assert server.json(CHAT, body | fields)["choices"][0]["message"] == plain


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"tools": [{"type": "function"}]}, "tools: is not supported"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools: is not supported"),
        ({"functions": [{"name": "f"}]}, "functions: is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 1}, "top_logprobs"),
    ],
)
def test_a_chat_that_asks_for_more(server: Running, fields: dict[str, Any], name: str) -> None:
    response, data = server.request("POST", CHAT, {"messages": [USER]} | fields)
    assert response.status in (400, 422) and name in data.decode()


MESSAGES: list[dict[str, Any]] = [
    {"name": None}, {"name": ""}, {"refusal": None}, {"annotations": []}, {"audio": None}, {"function_call": None},
    {"tool_calls": []}, {"tool_calls": None}, {"tool_call_id": None}, {"tool_call_id": ""}, {"reasoning": None},
    {"reasoning_content": None}, {"reasoning_content": ""}, {"never_heard_of": None},
]  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_messages(server: Running, path: str) -> None:
    plain = server.json("/tokenize", {"messages": [USER]})["tokens"]
    for fields in MESSAGES:
        body = {"messages": [USER | fields]} | ({"max_tokens": 1} if path == CHAT else {})
        reply = server.json(path, body)
        assert path == CHAT or reply["tokens"] == plain, fields
    parts = [{"type": "text", "text": "W", "cache_control": None}, {"type": "text", "text": "ho"}]
    assert server.json("/tokenize", {"messages": [USER | {"content": parts}]})["tokens"] == plain
    empty = server.json("/tokenize", {"messages": [USER | {"content": ""}]})["tokens"]
    assert server.json("/tokenize", {"messages": [USER | {"content": []}]})["tokens"] == empty
    error = server.json("/tokenize", {"messages": [USER, USER | {"tool_calls": [{"id": "a"}]}]}, status=422)["error"]
    assert error == "messages.1.tool_calls: is not supported"


def test_the_other_form_of_a_body_may_be_null_or_empty(server: Running) -> None:
    for path, body in (
        ("/generate", {"prompt": "Who", "inputs": None}),
        ("/generate", {"inputs": "Who", "prompt": None, "parameters": None}),
        ("/", {"prompt": "Who", "inputs": None, "history": None}),
        ("/infer", {"inputs": "Who", "input_id": None}),
        ("/infer", {"inputs": "Who", "input_id": []}),
        ("/infer", {"inputs": "", "input_id": [5]}),
        ("/tokenize", {"prompt": "Who", "messages": None}),
        ("/tokenize", {"prompt": "Who", "messages": [], "add_generation_prompt": True}),
        ("/tokenize", {"prompt": "", "messages": [USER], "add_special_tokens": False}),
        ("/v2/models/demo/generate", {"text_input": "Who", "id": ""}),
    ):
        assert _status(server, path, body) == 200, (path, body)
    for path, body in (
        ("/infer", {"input_id": []}),
        ("/infer", {"inputs": "Who", "input_id": [5]}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"prompt": "Who", "messages": [USER]}),
    ):
        assert _status(server, path, body) == 422, (path, body)


@pytest.mark.parametrize("answer", [{"content": None}, {}, {"content": ""}, {"content": [], "prefix": False}])
def test_an_answer_that_comes_back_may_be_empty(server: Running, answer: dict[str, Any]) -> None:
    """As one of OpenAI's that refused; it counts as an empty text. A user's turn may not."""
    turns = [USER, {"role": "assistant", **answer}, USER]
    body = {"messages": turns, "max_tokens": 2, "temperature": 0}
    empty = {"messages": [USER, {"role": "assistant", "content": ""}, USER], "max_tokens": 2, "temperature": 0}
    assert server.json(CHAT, body)["choices"] == server.json(CHAT, empty)["choices"]
    for path in (CHAT, "/tokenize"):
        response, data = server.request("POST", path, {"messages": [{"role": "user", **answer}]})
        if not isinstance(answer.get("content"), (str, list)):
            assert response.status == 422 and b"messages.0.content: Field required" in data


def test_an_answer_of_calls_is_refused_for_the_calls(server: Running) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, USER]
    error = server.json(CHAT, {"messages": turns}, status=422)["error"]
    assert error["message"] == "messages.1.tool_calls: is not supported"
