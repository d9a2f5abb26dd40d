"""Streams give whole characters and every blank, however tokens cut the text."""

from __future__ import annotations

from typing import Any

import pytest

from atb_models import LLM
from atb_models.server.api.logprobs import TextPlaces, completion_logprobs
from atb_models.server.words import WordTable
from tests.server.running import Running

TEXT = "a 鑫🐉  b\n 𠮷é ﷽  end "


def wild(seed: int) -> dict[str, Any]:
    """Answers at a temperature that mixes characters cut into bytes with words and blanks."""
    return {"prompt": "鑫🐉", "max_tokens": 40, "temperature": 30.0, "seed": seed, "ignore_eos": True}


@pytest.mark.parametrize("seed", range(2))
def test_a_stream_joins_to_the_whole_text(any_server: Running, seed: int) -> None:
    (whole,) = any_server.json("/v1/completions", wild(seed))["choices"]
    chunks = any_server.events("/v1/completions", wild(seed) | {"stream": True})[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]


def test_characters_of_several_tokens_come_whole(server: Running, llm: LLM) -> None:
    """An answer that repeats such characters: each event of each kind of stream has none or all of one."""
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode(TEXT)
    assert len(ids) > len(TEXT), "the vocabulary must cut some of its characters"
    events = server.events("/generate_stream", {"inputs": TEXT * 4, "parameters": {"max_new_tokens": 40}})
    text = events[-1]["generated_text"]
    assert "".join(event["token"]["text"] for event in events) == text


def test_words_are_the_bytes_of_the_text(llm: LLM) -> None:
    assert llm.tokenizer is not None
    words, ids = WordTable(llm.tokenizer), llm.tokenizer.encode(TEXT)
    assert words[ids[0]].special and not any(words[i].special for i in ids[1:])
    assert b"".join(words[i].data or b"" for i in ids[1:]).decode() == TEXT


def test_offsets_point_at_whole_characters(llm: LLM) -> None:
    assert llm.tokenizer is not None
    words, ids = WordTable(llm.tokenizer), llm.tokenizer.encode(TEXT)
    known = completion_logprobs(words, TextPlaces(words), ids, [None] * len(ids), 0, TEXT)
    assert known["text_offset"][:2] == [0, 0], "the first token is no part of the text"
    for token, offset in zip(known["tokens"][1:], known["text_offset"][1:], strict=True):
        assert TEXT.startswith(token, offset) if not token.startswith("bytes:") else len(TEXT[offset].encode()) > 1
    cut = [token for token in known["tokens"] if token.startswith("bytes:\\x")]
    assert cut, "tokens that are parts of a character are told apart by their bytes"


def test_token_texts_of_chats_have_their_bytes(server: Running) -> None:
    body = {
        "messages": [{"role": "user", "content": TEXT}], "max_tokens": 40, "temperature": 30.0, "seed": 5,
        "logprobs": True, "ignore_eos": True,
    }  # fmt: skip
    (choice,) = server.json("/v1/chat/completions", body)["choices"]
    data = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
    assert data.decode(errors="replace").startswith(choice["message"]["content"].rstrip("\N{REPLACEMENT CHARACTER}"))


def test_what_the_client_says_comes_back(server: Running) -> None:
    for prompt in (TEXT, "\u2028\x00\x7f", "e\u0301", "<｜end▁of▁sentence｜>"):
        body = {"prompt": prompt, "max_tokens": 0, "echo": True}
        assert server.json("/v1/completions", body)["choices"][0]["text"] == prompt


def test_half_a_character_is_refused(server: Running) -> None:
    body = b'{"prompt": "\\ud800", "max_tokens": 1}'
    response, data = server.request("POST", "/v1/completions", body)
    assert response.status == 400 and b"surrogate" in data
    response, data = server.request("POST", "/v1/completions", b'{"prompt": "x", "\\ud800": 1}')
    assert response.status == 422 and b"unicode" in data


def test_without_a_tokenizer_ids_tell_tokens_apart() -> None:
    assert [WordTable(None)[5].key, WordTable(None)[6].key] == ["token_id:5", "token_id:6"]
