"""TGI's endpoints through huggingface_hub's client, against `LLM` in this process."""

from __future__ import annotations

from typing import Any

import pytest

from atb_models import LLM, SamplingParams
from tests.server.running import Running

hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install -e .[test]")

PROMPT = "The capital of"


def test_text_generation(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=7))
    client = hub.InferenceClient(any_server.url)
    assert client.text_generation(PROMPT, max_new_tokens=7) == expected.text
    assert "".join(client.text_generation(PROMPT, max_new_tokens=7, stream=True)) == expected.text


def test_chat_through_the_same_client(server: Running, llm: LLM) -> None:
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    (expected,) = llm.chat([turn], SamplingParams(max_tokens=7))
    reply = hub.InferenceClient(base_url=server.url).chat_completion(turn, max_tokens=7, model="demo")
    assert reply.choices[0].message.content == expected.text


def test_details(any_server: Running, llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, logprobs=2, prompt_logprobs=0)
    (expected,) = llm.generate([PROMPT], params)
    output = hub.InferenceClient(any_server.url).text_generation(
        PROMPT, max_new_tokens=20, details=True, decoder_input_details=True, top_n_tokens=2
    )
    details = output.details
    assert output.generated_text == expected.text
    assert (details.finish_reason, details.generated_tokens) == ("eos_token", len(expected.token_ids))
    assert [token.id for token in details.prefill] == expected.prompt_token_ids
    assert [token.id for token in details.tokens] == expected.token_ids
    assert [token.special for token in details.tokens] == [False] * (len(details.tokens) - 1) + [True]
    assert "".join(token.text for token in details.tokens[:-1]) == expected.text
    for token, tops, known in zip(details.tokens, details.top_tokens, expected.logprobs, strict=True):
        assert token.logprob == pytest.approx(known[token.id], abs=0.02, rel=0.05)  # four ranks round otherwise
        assert [top["logprob"] for top in tops] == pytest.approx(sorted(known.values())[:-3:-1], abs=0.02, rel=0.05)


def test_stream_of_tokens(any_server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=20))
    stream = hub.InferenceClient(any_server.url).text_generation(PROMPT, max_new_tokens=20, details=True, stream=True)
    events = list(stream)
    assert [event.token.id for event in events] == expected.token_ids
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert "".join(event.token.text for event in events) == expected.text
    assert all(event.generated_text is None and event.details is None for event in events[:-1])
    assert events[-1].generated_text == expected.text
    details = events[-1].details
    assert (details.finish_reason, details.generated_tokens) == ("eos_token", len(expected.token_ids))
    assert details.input_length == len(expected.prompt_token_ids)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_every_path_streams(server: Running, path: str) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3}}
    events = server.events(path, body if path == "/generate_stream" else body | {"stream": True})
    assert [event["index"] for event in events] == [1, 2, 3]


def test_the_form_of_whole_answers(server: Running, llm: LLM) -> None:
    (expected,) = llm.generate([PROMPT], SamplingParams(max_tokens=20))
    body = {"inputs": PROMPT}
    assert server.json("/generate", body) == {"generated_text": expected.text}
    assert server.json("/", body) == [{"generated_text": expected.text}], "a list, as TGI has it there"
    full = server.json("/generate", {"inputs": PROMPT, "parameters": {"return_full_text": True}})
    assert full == {"generated_text": PROMPT + expected.text}


def test_20_tokens_unless_asked(server: Running) -> None:
    events = server.events("/generate_stream", {"inputs": "Once upon a time"})
    assert len(events) <= 20
    reply = server.json("/generate", {"inputs": "deep", "parameters": {"details": True}})
    assert reply["details"]["generated_tokens"] == 20 or reply["details"]["finish_reason"] == "eos_token"


def test_truncate_keeps_the_end_of_the_prompt(server: Running, llm: LLM) -> None:
    (whole,) = llm.generate(["One two three. " + PROMPT], SamplingParams(max_tokens=1))
    ids = whole.prompt_token_ids[-4:]
    (expected,) = llm.generate([ids], SamplingParams(max_tokens=6))
    body = {"inputs": "One two three. " + PROMPT, "parameters": {"truncate": 4, "max_new_tokens": 6}}
    assert server.json("/generate", body)["generated_text"] == expected.text


def test_a_stop_string_is_told_from_eos(server: Running) -> None:
    body: dict[str, Any] = {"inputs": PROMPT, "parameters": {"stop": ["jing"], "details": True}}
    reply = server.json("/generate", body)
    assert reply["generated_text"] == " China is Bei"
    assert reply["details"]["finish_reason"] == "stop_sequence"


def test_a_filter_or_do_sample_means_to_sample(server: Running) -> None:
    def texts(**parameters: Any) -> set[str]:
        all_of_them = parameters | {"max_new_tokens": 8}
        bodies = [{"inputs": "Once", "parameters": all_of_them | {"seed": seed}} for seed in range(4)]
        return {server.json("/generate", body)["generated_text"] for body in bodies}

    assert len(texts()) == 1
    assert len(texts(do_sample=False)) == 1
    assert len(texts(do_sample=True)) > 1
    assert len(texts(top_k=50)) > 1
    assert len(texts(do_sample=False, temperature=1.0)) > 1, "huggingface_hub used to send do_sample false always"


def test_info(any_server: Running) -> None:
    info = any_server.json("/info")
    assert (info["model_id"], info["model_device_type"], info["max_total_tokens"]) == ("demo", "cpu", 8192)
    assert (info["model_dtype"], info["model_quantization"]) == ("fp16", None)


@pytest.mark.parametrize("field, value", [("watermark", True), ("typical_p", 0.5), ("best_of", 2), ("adapter_id", "a")])
def test_parameters_without_support_are_refused_by_name(server: Running, field: str, value: Any) -> None:
    reply = server.json("/generate", {"inputs": "x", "parameters": {field: value}}, status=422)
    assert field in reply["error"] and reply["error_type"]


def test_the_client_understands_errors(server: Running) -> None:
    from huggingface_hub.errors import HfHubHTTPError, TextGenerationError

    with pytest.raises((TextGenerationError, HfHubHTTPError)):
        hub.InferenceClient(server.url).text_generation("x " * 9000, max_new_tokens=1)
