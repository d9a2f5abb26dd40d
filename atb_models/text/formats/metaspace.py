"""The pre-tokenizer Metaspace with prepend_scheme and split, which tokenizers before 0.19 does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import NormalizedString, PreTokenizedString


class Metaspace:
    """Writes blanks as `replacement`, the sign with which pieces of a vocabulary begin a word.

    prepend_scheme: where one is put before a text that begins with none: "always" after each added token too, "first"
    only at the very beginning, "never". splits: whether a text is divided into words before them.
    It gets a text in stretches between added tokens and calls Python once for each, not for each word.
    """

    def __init__(self, replacement: str, prepend_scheme: str, *, splits: bool) -> None:
        self._replacement = replacement
        self._prepend_scheme = prepend_scheme
        self._splits = splits

    def pre_tokenize(self, text: PreTokenizedString) -> None:
        """Divide a text, in place. The name is the library's."""
        text.split(self._words)

    def _words(self, place: int, stretch: NormalizedString) -> list[NormalizedString]:
        """place: among the stretches and added tokens of the text."""
        stretch.replace(" ", self._replacement)
        prepends = self._prepend_scheme == "always" or (self._prepend_scheme == "first" and place == 0)
        if prepends and not stretch.normalized.startswith(self._replacement):
            stretch.prepend(self._replacement)
        return stretch.split(self._replacement, "merged_with_next") if self._splits else [stretch]
