"""`ignore_merges`: a word that stands in the vocabulary is one token, whatever the merges would make of it.

tokenizers before 0.19 accepts the field of tokenizer.json and does nothing, so words that no merges lead to get other
ids. Llama 3, whose vocabulary comes from tiktoken, has such words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from atb_models.errors import CheckpointError
from atb_models.text.byte_fallback import BYTE_PIECE
from atb_models.text.byte_letters import BYTE_OF_LETTER
from atb_models.text.token_bytes import BYTE_LETTERS, BYTE_PIECES
from atb_models.wording import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer as JsonTokenizer
    from tokenizers.models import BPE

CHARACTER = "\u4f60"  # any that has several bytes
WholeWords = Mapping[tuple[int, ...], int]


class Divided(Protocol):
    """An encoding: token ids, and for each the word that it is of, None for a token that is added to the text."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def word_ids(self) -> Sequence[int | None]: ...


def whole_words(tokenizer: JsonTokenizer, place: str) -> dict[tuple[int, ...], int]:
    """The ids that the merges make of a word -> the id of the word, for each where these differ.

    A word of a text has these ids only if it is that word: so the ids of a text can be put right after the library.
    place: what messages call the file. Raises CheckpointError where this would not hold.
    """
    from tokenizers import models

    model = tokenizer.model
    if not isinstance(model, models.BPE):
        return {}
    _check_exact(tokenizer, model, place)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    found: dict[tuple[int, ...], int] = {}
    before, model.dropout = model.dropout, 0.0  # with dropout the library keeps no cache, which this would fill
    try:
        for piece, index in vocabulary.items():
            tokens = model.tokenize(piece)
            ids = tuple(token.id for token in tokens)
            if ids == (index,):
                if BYTE_PIECE.fullmatch(piece):
                    raise _needs_later(place, f"merges lead to the byte {shown(piece)}")
                continue
            if b"".join(_bytes(token.value) for token in tokens) != piece.encode():
                raise _needs_later(place, f"{shown(piece)} has characters that are no pieces")
            found[ids] = index
    finally:
        model.dropout = before
    return found


def join_words(encoding: Divided, words: WholeWords) -> list[int]:
    """The ids of an encoding, where words that stand in the vocabulary are one token."""
    ids: list[int] = []
    for word, pairs in groupby(zip(encoding.word_ids, encoding.ids, strict=True), lambda pair: pair[0]):
        run = tuple(index for _, index in pairs)
        whole = None if word is None else words.get(run)
        ids += run if whole is None else (whole,)
    return ids


def _check_exact(tokenizer: JsonTokenizer, model: BPE, place: str) -> None:
    """Raises CheckpointError where characters of a text may be dropped, so that two words have the same ids."""
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise _needs_later(place, "its pieces have a prefix or suffix")
    pieces = tokenizer.get_vocab(with_added_tokens=False).keys()
    has_bytes = model.byte_fallback and pieces >= BYTE_PIECES
    if not (model.unk_token or has_bytes or (pieces >= BYTE_LETTERS and _writes_bytes(tokenizer))):
        raise _needs_later(place, "characters that are no pieces are dropped")


def _writes_bytes(tokenizer: JsonTokenizer) -> bool:
    """Whether the pre-tokenizer writes each byte of a text as a letter."""
    if tokenizer.pre_tokenizer is None:
        return False
    words = tokenizer.pre_tokenizer.pre_tokenize_str(CHARACTER)
    letters = "".join(word for word, _ in words)[-len(CHARACTER.encode()) :]
    return bytes(BYTE_OF_LETTER.get(letter, 0) for letter in letters) == CHARACTER.encode()


def _bytes(piece: str) -> bytes:
    match = BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(match[1]) if match else piece.encode()


def _needs_later(place: str, why: str) -> CheckpointError:
    return CheckpointError(f"{place}: model.ignore_merges takes tokenizers 0.19 or later here, for {why}")
