"""The text of a growing list of tokens, in whole characters, and the search for stop strings in it."""

from __future__ import annotations

from collections.abc import Callable

Decode = Callable[[list[int]], str]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A UTF-8 character has at most 4 bytes and a token at least one: what is incomplete after 4 tokens stays so, except for
# the last 3 bytes, each of which may decode to a U+FFFD of its own.
MAX_CHARACTER_TOKENS = 4
# Tokens that are kept as context before new ones: a token's text depends on one or two before it (spaces, split bytes).
CONTEXT_TOKENS = 6


class Detokenizer:
    """Decodes one sequence token by token in a short window, with one to three short calls of `decode` per token.

    The text of a whole sequence comes from here too (`extend`), so it is the same however it was asked for.
    decode: with more tokens its text begins with the text of the first ones, except for an incomplete character at
    their end.
    `text` is all text so far, cut before the first complete stop string. `take` returns its new part, but not an end
    that may still become a stop string.
    """

    __slots__ = (
        "_closed", "_decode", "_decoded", "_longest", "_mark", "_num_broken", "_num_shown", "_stop", "_taken",
        "_window", "text",
    )  # fmt: skip

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self.text = ""
        self._decode = decode
        self._stop, self._longest = stop, max(map(len, stop), default=0)
        self._window: list[int] = []
        self._decoded = ""  # the window's text, with an incomplete character at its end
        self._num_shown = 0  # characters of the decoded window that `text` has already
        self._mark = 0  # tokens of the window before the last place where it can be cut; 0: none yet
        self._num_broken = 0  # tokens since the text last ended with a whole character
        self._taken = 0
        self._closed = False

    def push(self, token_id: int) -> bool:
        """Add a token. True if it completes a stop string; then no more may be added."""
        decoded = self._decode([*self._window, token_id])
        if decoded == self._decoded and not self._decode([token_id, token_id]):
            return False  # such as EOS: it has no text and is no context, so the window must not grow by it
        self._window.append(token_id)
        self._decoded = decoded
        self._num_broken = self._num_broken + 1 if decoded.endswith(REPLACEMENT) else 0
        if self._show(self._whole(decoded)):
            return True
        if not self._num_broken or self._num_broken > MAX_CHARACTER_TOKENS:
            self._shorten()
        return False

    def extend(self, token_ids: list[int]) -> None:
        """Add the last tokens, any number of them, in one call of `decode`; `finish` must follow, which shows them."""
        self._window += token_ids
        self._decoded = self._decode(self._window)

    def finish(self) -> bool:
        """Add what was held back, also half a character. True if that completes a stop string."""
        found = not self._closed and self._show(self._decoded)
        self._closed = True
        return found

    def take(self) -> str:
        """The text that was not taken yet and that later tokens cannot change."""
        end = len(self.text) - (0 if self._closed else self._num_undecided())
        piece = self.text[self._taken : end]
        self._taken += len(piece)
        return piece

    def _whole(self, decoded: str) -> str:
        """The decoded window without an incomplete character at its end."""
        if not self._num_broken:
            return decoded
        # An incomplete character decodes to one U+FFFD or, with byte fallback, to one for each of its bytes.
        whole = decoded.rstrip(REPLACEMENT)
        if self._num_broken < MAX_CHARACTER_TOKENS:
            return whole
        return decoded[: max(len(whole), len(decoded) - MAX_CHARACTER_TOKENS + 1)]

    def _show(self, decoded: str) -> bool:
        """Append the new part of the window's text. True if it completes a stop string, which is cut off."""
        new = decoded[self._num_shown :]
        if not new:
            return False
        self._num_shown = len(decoded)
        start = max(0, len(self.text) - self._longest + 1)
        self.text += new
        places = ((self.text.find(stop, start), len(stop)) for stop in self._stop)
        ends = [(place + length, place) for place, length in places if place >= 0]
        if not ends:
            return False
        self.text = self.text[: min(ends)[1]]  # the first that is complete; of two that end together, the longer one
        self._closed = True
        return True

    def _shorten(self) -> None:
        """Cut the window at the mark if enough context follows it; move the mark to the window's end."""
        num_tokens = len(self._window)
        if num_tokens - self._mark < CONTEXT_TOKENS:
            return
        if self._mark:
            tail = self._window[self._mark :]
            num_held = max(0, len(self._decoded) - self._num_shown)
            self._window, self._decoded = tail, self._decode(tail)
            self._num_shown = len(self._decoded) - num_held
        self._mark = len(self._window)

    def _num_undecided(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(self.text)), 0, -1):
            end = self.text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
