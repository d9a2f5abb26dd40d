"""The words of a command, read from left to right; a refusal names the word, its position and what belongs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from atb_models.errors import ConfigError
from modeltest.command.lists import is_open

T = TypeVar("T")


class Words:
    """A cursor. Positions count the words as the shell gave them, from 1. option: what stands behind them, if any."""

    def __init__(self, words: Sequence[str], option: str = "") -> None:
        self._words, self._next, self._option = list(words), 0, option

    @property
    def left(self) -> bool:
        """Whether there is a next word."""
        return self._next < len(self._words)

    def peek(self) -> str:
        """The next word, "" at the end."""
        return self._words[self._next] if self.left else ""

    def take(self, expected: str, parse: Callable[[str], T | None]) -> T:
        """What `parse` makes of the next word; None from it, or the end of the words, is refused."""
        value = self.take_if(parse)
        return self.refuse(expected) if value is None else value

    def take_if(self, parse: Callable[[str], T | None]) -> T | None:
        """Likewise, but a word that `parse` does not know stays the next one, and None is given."""
        value = parse(self.peek()) if self.left else None
        if value is not None:
            self._next += 1
        return value

    def take_list(self, expected: str, parse: Callable[[str], T | None]) -> T:
        """`take` of a list that the shell may have cut at its blanks."""
        value = self.take_list_if(parse)
        return self.refuse(expected) if value is None else value

    def take_list_if(self, parse: Callable[[str], T | None]) -> T | None:
        """`take_if` of a list that the shell may have cut at its blanks."""
        text, end = self.peek(), self._next + 1
        while is_open(text) and end < len(self._words):
            text, end = f"{text} {self._words[end]}", end + 1
        value = parse(text) if text else None
        if value is not None:
            self._next = end
        return value

    def refuse(self, expected: str) -> NoReturn:
        """The next word, or its absence, is not what belongs there."""
        if not self.left:
            before = f" before {self._option}, for options come after the words" if self._option else ""
            raise ConfigError(f"word {self._next + 1} is missing{before}; expected there: {expected}")
        raise ConfigError(f"word {self._next + 1} {self.peek()!r} is not known there; expected: {expected}")

    def refuse_known(self, reason: str) -> NoReturn:
        """The next word is one of MindIE's that is not supported."""
        raise ConfigError(f"word {self._next + 1} {self.peek()!r} is refused: {reason}")

    def at(self) -> str:
        """How an error calls the next word."""
        return f"word {self._next + 1} {self.peek()!r}"
