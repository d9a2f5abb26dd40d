"""MindIE's own endpoints and those in Triton's manner."""

from __future__ import annotations

import pytest

from atb_models import LLM, SamplingParams
from tests.server.raw import stopped
from tests.server.running import Running

PROMPT = "The capital of"


def test_infer(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=20))
    reply = any_server.json("/infer", {"inputs": PROMPT, "parameters": {"details": True}})
    assert reply == {
        "generated_text": expected.text,
        "details": {
            "finish_reason": "eos_token",
            "generated_tokens": len(expected.token_ids),
            "generated_token_ids": expected.token_ids,
            "seed": None,
        },
    }
    ids = {"input_id": expected.prompt_token_ids}
    assert any_server.json("/infer", ids) == {"generated_text": expected.text}
    assert any_server.json("/infer_token", ids) == {"generated_text": expected.text}


@pytest.mark.parametrize("path", ["/infer", "/infer_token"])
def test_infer_stream(any_server: Running, llm: LLM, path: str) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=20))
    body = {"input_id": expected.prompt_token_ids, "stream": True, "parameters": {"details": True, "seed": 3}}
    events = any_server.events(path, body)
    assert [i for event in events for i in event["token"]["id"]] == expected.token_ids
    assert "".join(event["token"]["text"] for event in events) == expected.text
    assert events[0]["prefill_time"] > 0 and events[0]["decode_time"] is None
    assert all(event["prefill_time"] is None and event["decode_time"] > 0 for event in events[1:])
    assert events[-1]["generated_text"] == expected.text
    assert events[-1]["details"]["seed"] == 3


def test_infer_takes_one_prompt(server: Running) -> None:
    for body in ({}, {"inputs": "x", "input_id": [1]}):
        assert "inputs or input_id" in server.json("/infer", body, status=422)["error"]
    assert "input_id" in server.json("/infer_token", {"inputs": "x"}, status=422)["error"]


def test_a_request_may_have_a_shorter_time(server: Running) -> None:
    with stopped(server):
        reply = server.json("/infer", {"inputs": "x", "parameters": {"timeout": 1}}, status=504)
    assert "not complete after 1 s" in reply["error"]


def test_priorities_are_refused(server: Running) -> None:
    assert server.json("/infer", {"inputs": "x", "parameters": {"priority": 5, "max_new_tokens": 1}})
    assert "priority" in server.json("/infer", {"inputs": "x", "parameters": {"priority": 1}}, status=422)["error"]


def test_tokenizer(server: Running, llm: LLM) -> None:
    text = "你好 the capital 🐉"
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(text)
    assert server.json("/v1/tokenizer", {"inputs": text, "do_decode": False}) == {
        "token_number": len(ids),
        "tokens": ids,
    }
    reply = server.json("/v1/tokenizer", {"inputs": text})
    assert reply["token_number"] == len(ids)
    assert "".join(reply["tokens"][1:]) == text
    assert "🐉" in reply["tokens"], "one character of several tokens is shown once"


def test_triton_generate(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=4))
    body = {"id": "a-1", "text_input": PROMPT, "parameters": {"max_new_tokens": 4, "details": True}}
    reply = any_server.json("/v2/models/demo/generate", body)
    details = reply.pop("details")
    assert reply == {"id": "a-1", "model_name": "demo", "model_version": None, "text_output": expected.text}
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 4)
    assert details["first_token_cost"] > 0 and details["decode_cost"] > 0 and details["queue_wait_time"] >= 0


def test_triton_stream(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=4))
    body = {"text_input": PROMPT, "parameters": {"max_new_tokens": 4}}
    events = any_server.events("/v2/models/demo/generate_stream", body)
    assert "".join(event["text_output"] for event in events) == expected.text
    assert all("details" not in event for event in events)


def test_triton_facts(server: Running) -> None:
    assert server.json("/v2")["name"] == "atb_models"
    assert server.json("/v2/models/demo")["name"] == "demo"
    assert server.json("/v2/models/demo/ready") == {"name": "demo", "ready": True}
    slots = server.json("/v2/models/demo/getSlotCount")
    assert (slots["total_slots"], slots["free_slots"]) == (64, 64)
    for path in ("/v2/models/x", "/v2/models/x/ready", "/v2/models/x/getSlotCount"):
        assert "no model 'x' here" in server.json(path, status=404)["error"]
    server.json("/v2/models/x/generate", {"text_input": "x"}, status=404)


def test_a_model_with_a_stroke_in_its_name(closed: Running) -> None:
    """As models are called on the hubs."""
    for path in ("/v1/models/org/closed", "/v2/models/org/closed", "/v2/models/org/closed/getSlotCount"):
        assert closed.json(path)
    assert closed.json("/v2/models/org/closed/ready") == {"name": "org/closed", "ready": True}
    body = {"text_input": "x", "parameters": {"max_new_tokens": 2}}
    assert closed.json("/v2/models/org/closed/generate", body)["model_name"] == "org/closed"
    assert closed.events("/v2/models/org/closed/generate_stream", body)[-1]["model_name"] == "org/closed"
