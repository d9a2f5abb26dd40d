"""The text and the bytes of single tokens, for log-probabilities and token lists."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from atb_models.text.byte_letters import BYTE_OF_LETTER
from atb_models.text.detokenizer import REPLACEMENT
from atb_models.text.tokenizer import Tokenizer

AT_ONCE = 1024  # words that are looked up without serving others
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that is no whole character


@dataclass(frozen=True, slots=True)
class Word:
    """A token. text: with U+FFFD for bytes that are no whole character. data: its bytes, None if they are not known.

    special: such as EOS, which is no part of an answer's text.
    """

    text: str
    data: bytes | None
    special: bool

    @property
    def key(self) -> str:
        """A text that is different for tokens with different bytes, in the form of OpenAI's completions."""
        if REPLACEMENT not in self.text or self.data is None:
            return self.text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


class WordTable:
    """The `Word` of every token, computed at first use. Without a tokenizer the text is the token's id."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, Word] = {}
        # Some tokenizers drop the blank before a text's first word, so each token is decoded after another one.
        self._before = [] if tokenizer is None else tokenizer.encode("a", False)[-1:]

    def __getitem__(self, token_id: int) -> Word:
        word = self._known.get(token_id)
        if word is None:
            word = self._known[token_id] = self._word(token_id)
        return word

    async def each(self, token_ids: Sequence[int]) -> list[Word]:
        """The word of each token. Others are served in between, as there may be very many."""
        found: list[Word] = []
        for start in range(0, len(token_ids), AT_ONCE):
            found += [self[token_id] for token_id in token_ids[start : start + AT_ONCE]]
            await asyncio.sleep(0)
        return found

    def _word(self, token_id: int) -> Word:
        if self._tokenizer is None:
            return Word(f"token_id:{token_id}", None, False)
        before = self._tokenizer.decode(self._before, False)
        text = self._tokenizer.decode([*self._before, token_id], False)[len(before) :]
        special = bool(text) and not self._tokenizer.decode([token_id])
        data = text.encode() if REPLACEMENT not in text else _bytes(self._tokenizer.id_to_token(token_id))
        return Word(text, data, special)


def _bytes(piece: str | None) -> bytes | None:
    """The bytes of a vocabulary's piece that is no text: a byte written as <0xE4>, or GPT-2's letters for bytes."""
    if piece is None:
        return None
    if match := BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(match[1])
    values = [BYTE_OF_LETTER.get(letter) for letter in piece]
    return bytes(value for value in values if value is not None) if None not in values else None
