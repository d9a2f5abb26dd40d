"""Log-probabilities as OpenAI's chats and completions have them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from typing_extensions import TypedDict

from atb_models.outputs import TokenLogprobs
from atb_models.server.words import WordTable

LEAST = -9999.0  # OpenAI's number for what cannot be


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]


def chat_logprobs(
    words: WordTable, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], tops: int | None
) -> ChatLogprobs | None:
    """The tokens with their `tops` most probable rivals each; None where none were asked for. token ids [T]."""
    if tops is None:
        return None
    content: list[TokenLogprob] = []
    for token_id, known in zip(token_ids, logprobs, strict=True):
        one = _chat_token(words, token_id, known[token_id])
        content.append({**one, "top_logprobs": [_chat_token(words, *top) for top in most_probable(known, tops)]})
    return {"content": content}


def _chat_token(words: WordTable, token_id: int, logprob: float) -> TopLogprob:
    word = words[token_id]
    data = None if word.data is None else list(word.data)
    return {"token": word.text, "logprob": finite(logprob), "bytes": data}


def most_probable(known: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    """(token id, log-probability) of the `count` most probable, best first."""
    return sorted(known.items(), key=lambda item: -item[1])[:count]


def finite(logprob: float) -> float:
    return max(logprob, LEAST)


class CompletionLogprobs(TypedDict):
    """By token; the first token of an echoed prompt has nulls."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextPlaces:
    """Where each token of a growing text begins, in characters; one that goes on with a split character where that
    character does."""

    def __init__(self, words: WordTable) -> None:
        self._words = words
        self._place = 0
        self._split = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token_id: int, text: str) -> int:
        """text: what is known of the text so far. Special tokens are usually none of it."""
        place, word = self._place, self._words[token_id]
        if not word.special:
            data = word.text.encode() if word.data is None else word.data
            self._place += len(self._split.decode(data))
        elif text.startswith(word.text, place):
            self._place += len(word.text)
        return min(place, len(text))


def completion_logprobs(
    words: WordTable,
    places: TextPlaces,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    tops: int,
    text: str,
) -> CompletionLogprobs:
    """token_ids [T]: those that `text` has gained; `tops` most probable ones each, and the token itself."""
    result: CompletionLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token_id, known in zip(token_ids, logprobs, strict=True):
        result["tokens"].append(words[token_id].key)
        result["text_offset"].append(places.next(token_id, text))
        result["token_logprobs"].append(None if known is None else finite(known[token_id]))
        result["top_logprobs"].append(None if known is None else _by_text(words, known, token_id, tops))
    return result


def _by_text(words: WordTable, known: TokenLogprobs, token_id: int, tops: int) -> dict[str, float]:
    best = dict(most_probable(known, tops)) | ({token_id: known[token_id]} if tops else {})
    return {words[index].key: finite(logprob) for index, logprob in best.items()}
