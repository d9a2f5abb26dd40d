"""Added tokens of a byte-level tokenizer, which the tokenizers library decodes wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as JsonTokenizer

LONG_TEXT = 4096  # characters; tokenizing a longer text takes long enough to hold up other work


class JsonBackend:
    """A tokenizer of the tokenizers library whose added tokens decode to their own text.

    The library's byte-level decoder takes letters such as ü for encoded bytes, also those of an added token: thirteen
    letters that DeepSeek's vocabulary adds would decode to U+FFFD.
    """

    def __init__(self, tokenizer: JsonTokenizer) -> None:
        from tokenizers import decoders

        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}  # text of the tokens that the library would decode wrongly
        if isinstance(tokenizer.decoder, decoders.ByteLevel):
            added = tokenizer.get_added_tokens_decoder().items()
            plain = {index: token.content for index, token in added if not token.special}
            self._texts = {index: text for index, text in plain.items() if tokenizer.decode([index]) != text}

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        if len(text) > LONG_TEXT:  # unlike `encode`, a batch of one lets other threads run meanwhile
            return self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if self._texts.keys().isdisjoint(ids):
            return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
        pieces = []
        for text, group in groupby(ids, self._texts.get):
            run = list(group)
            pieces.append(
                self._tokenizer.decode(run, skip_special_tokens=skip_special_tokens)
                if text is None
                else text * len(run)
            )
        return "".join(pieces)

    def token_to_id(self, token: str) -> int | None:
        index: int | None = self._tokenizer.token_to_id(token)
        return index

    def id_to_token(self, token_id: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token
