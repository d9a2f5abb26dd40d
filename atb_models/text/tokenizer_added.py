"""A tokenizer of the tokenizers library, with what the library decodes wrongly put right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from atb_models.errors import RequestError
from atb_models.text.byte_fallback import with_replacements
from atb_models.text.formats.whole_words import WholeWords, join_words
from atb_models.text.token_bytes import most_bytes_of_a_token
from atb_models.text.tokenizer_check import library_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer as JsonTokenizer

LONG_TEXT = 4096  # characters; tokenizing a longer text takes long enough to hold up other work


class JsonBackend:
    """A tokenizer of the tokenizers library whose text never depends on where it is cut.

    The library's byte-level decoder takes letters such as ü for encoded bytes, also those of an added token: thirteen
    letters that DeepSeek's vocabulary adds would decode to U+FFFD. For byte fallback see byte_fallback.py.
    """

    def __init__(
        self, tokenizer: JsonTokenizer, words: WholeWords = MappingProxyType({}), pre_tokenizer: Any = None
    ) -> None:
        """words: what is to be put right in the ids of a text. pre_tokenizer: its state, if it came from a file."""
        from tokenizers import decoders

        self._tokenizer = tokenizer
        self._words = words
        self._pre_tokenizer = pre_tokenizer
        self._special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        self._byte_ids: set[int] = set()  # tokens of single bytes, where the decoder joins them to characters
        if tokenizer.decoder is not None and tokenizer.decoder.decode(["<0x41>", "<0x42>"]) == "AB":
            ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
            self._byte_ids = {index for index in ids if index is not None}
        self._texts: dict[int, str] = {}  # text of the tokens that the library would decode wrongly
        if isinstance(tokenizer.decoder, decoders.ByteLevel):
            added = tokenizer.get_added_tokens_decoder().items()
            plain = {index: token.content for index, token in added if not token.special}
            self._texts = {index: text for index, text in plain.items() if tokenizer.decode([index]) != text}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with library_errors("the checkpoint's tokenizer cannot take this text", RequestError):
            if len(text) > LONG_TEXT:  # unlike `encode`, a batch of one lets other threads run meanwhile
                encoding = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]
            else:
                encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return join_words(encoding, self._words) if self._words else encoding.ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        if not self._byte_ids.isdisjoint(ids):
            return self._decode_bytes(ids, skip_special_tokens=skip_special_tokens)
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

    def _decode_bytes(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        pieces = (self._tokenizer.id_to_token(index) for index in ids)
        hidden = self._special if skip_special_tokens else frozenset()
        known = [piece for piece in pieces if piece is not None and piece not in hidden]
        return str(self._tokenizer.decoder.decode(with_replacements(known)))

    def token_to_id(self, token: str) -> int | None:
        index: int | None = self._tokenizer.token_to_id(token)
        return index

    def id_to_token(self, token_id: int) -> str | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    @cached_property
    def most_bytes_of_a_token(self) -> int | None:
        return most_bytes_of_a_token(self._tokenizer, self._pre_tokenizer)
