"""The prompts of the single modes."""

from __future__ import annotations

import ast
from pathlib import Path

from atb_models.errors import ConfigError
from atb_models.files import read_lines


def read_texts(word: str, where: str) -> tuple[str, ...]:
    """The prompts in a Python list of texts, a single quoted text, or a file with one a line (blank lines left out).

    where: how an error calls the word. Raises ConfigError for what is neither, or holds no prompt.
    """
    texts = _literal(word)
    if texts is None:
        texts = _lines(word, where)
    if not texts:
        raise ConfigError(f"{where} holds no prompt")
    return texts


def _literal(word: str) -> tuple[str, ...] | None:
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    values = (value,) if isinstance(value, str) else value
    is_texts = isinstance(values, (list, tuple)) and all(isinstance(text, str) for text in values)
    return tuple(values) if is_texts else None


def _lines(word: str, where: str) -> tuple[str, ...]:
    try:
        lines = read_lines(Path(word).expanduser())
    except (ValueError, RuntimeError) as error:  # a ConfigError, a NUL in a name, ~ of a user there is not
        raise ConfigError(
            f"{where} is neither a list such as '[\"Who are you?\"]' nor a file of prompts that can be read: {error}"
        ) from None
    return tuple(line for line in lines if line.strip())
