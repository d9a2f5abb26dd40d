"""The text and the bytes of single tokens, for log-probabilities and token lists."""

from __future__ import annotations

import re
from dataclasses import dataclass

from atb_models.text.detokenizer import REPLACEMENT
from atb_models.text.tokenizer import Tokenizer

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


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes stand for themselves, the others are U+0100 and up, in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_letters()
