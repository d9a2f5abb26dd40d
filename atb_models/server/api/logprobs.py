"""Log-probabilities as OpenAI's chats and completions have them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from typing_extensions import TypedDict

from atb_models.outputs import TokenLogprobs, finite
from atb_models.server.words import WordTable


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
    """The tokens [T], each with its `tops` most probable alternatives; None if none were asked for."""
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
    """(token id, log-probability) of the `count` most probable tokens, the best first."""
    return sorted(known.items(), key=lambda item: -item[1])[:count]


class CompletionLogprobs(TypedDict):
    """Lists with an item for each token; it is null for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextPlaces:
    """The position of each token in a growing text, in characters.

    A token that continues a split character has that character's position.
    """

    def __init__(self, words: WordTable) -> None:
        self._words = words
        self._place = 0
        self._split = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token_id: int, text: str) -> int:
        """text: the text so far, usually without special tokens."""
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
    """For the new tokens [T] of `text`: the `tops` most probable ones each, and the token itself."""
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
