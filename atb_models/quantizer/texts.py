"""What the model reads for calibration and for the comparison at the end: texts as token ids."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from atb_models.demo import questions
from atb_models.errors import ConfigError, RequestError
from atb_models.files import expanded, read_text
from atb_models.json_file import json_lines
from atb_models.text.tokenizer import Tokenizer
from atb_models.wording import shown

logger = logging.getLogger(__name__)

_KEYS = ("text", "prompt", "question", "token_ids", "input_ids")
_RANDOM_TOKENS = 512  # for a checkpoint without a tokenizer


class Exchange(NamedTuple):
    """A question and its answer, which a chat template may join."""

    question: str
    answer: str


Text = str | list[int] | Exchange


def texts_of(file: str | None, flag: str, *, by_line: bool) -> list[Text]:
    """The texts of a file, or the project's own: the questions that its embedded checkpoint answers, with the answers.

    A .jsonl file has one text a line, as a JSON text, as a list of token ids, or as an object with either under one of
    _KEYS. Any other file is one text, or with `by_line` has one a line. flag: the one that named the file. Raises
    ConfigError for a file that cannot be read, has no text, or a line that is none of these.
    """
    if file is None:
        return [Exchange(str(one["question"]), str(one["answer"])) for one in questions()]
    path = expanded(file)
    place = f"{flag} {path}"
    found: list[Text]
    if path.suffix == ".jsonl":
        lines = json_lines(read_text(path, place), place)
        found = [_text(value, f"{place}, line {line}") for line, value in lines]
    else:
        text = read_text(path, place)
        found = [line for line in (text.split("\n") if by_line else [text]) if line.strip()]
    if not found:
        raise ConfigError(f"{place} holds no text")
    return found


def _text(value: Any, place: str) -> Text:
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    is_ids = isinstance(value, list) and value and all(type(one) is int and one >= 0 for one in value)
    if not is_ids and not (isinstance(value, str) and value):
        raise ConfigError(f"{place} must be a text or a list of token ids, or an object with one, not {shown(value)}")
    text: str | list[int] = value
    return text


def windows(
    texts: Iterable[Text], tokenizer: Tokenizer | None, vocab_size: int, length: int, tokens: int, flag: str
) -> list[list[int]]:
    """The texts as token ids in pieces of at most `length`, `tokens` in all.

    Without a tokenizer texts are replaced by random ids, which the log tells. Raises ConfigError for ids outside of the
    vocabulary, and where no piece has two tokens.
    """
    found: list[list[int]] = []
    for piece in _pieces(texts, tokenizer, vocab_size, length, flag):
        left = tokens - sum(map(len, found))
        if left < 2:
            break
        if len(piece) > 1:
            found.append(piece[:left])
    if not found:
        raise ConfigError(f"{flag}: no text has two tokens")
    return found


def _pieces(
    texts: Iterable[Text], tokenizer: Tokenizer | None, vocab_size: int, length: int, flag: str
) -> Iterator[list[int]]:
    for text in texts:
        if isinstance(text, list):
            ids = text
        elif tokenizer is not None:
            ids = _encoded(text, tokenizer)
        else:
            logger.warning("the checkpoint has no tokenizer: random token ids stand for the texts of %s", flag)
            ids = random.Random(0).choices(range(vocab_size), k=_RANDOM_TOKENS)
        if outside := [one for one in ids if one >= vocab_size]:
            raise ConfigError(f"{flag}: token id {outside[0]} is outside the vocabulary of {vocab_size}")
        yield from (ids[start : start + length] for start in range(0, len(ids), length))
        if tokenizer is None and not isinstance(text, list):
            return


def _encoded(text: str | Exchange, tokenizer: Tokenizer) -> list[int]:
    """With the checkpoint's chat template around a question, if it has one."""
    if isinstance(text, str):
        return tokenizer.encode(text)
    try:
        question = tokenizer.apply_chat_template([{"role": "user", "content": text.question}])
    except RequestError:
        return tokenizer.encode(f"{text.question}{text.answer}")
    return question + tokenizer.encode(text.answer, add_special_tokens=False)
