"""How many bytes of a text one token can stand for: a text with more of them than that many tokens hold is refused
before it is tokenized, which takes seconds and hundreds of bytes of memory for each byte of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from atb_models.text.byte_letters import BYTE_OF_LETTER

if TYPE_CHECKING:
    from tokenizers import Tokenizer as JsonTokenizer

TEXT_BYTES = frozenset(range(0xF5)) - {0xC0, 0xC1}  # that UTF-8 has; DeepSeek's vocabulary has no others
BYTE_LETTERS = frozenset(letter for letter, byte in BYTE_OF_LETTER.items() if byte in TEXT_BYTES)
BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in TEXT_BYTES)
# Bytes of a text for one byte of its NFC form, at most. U+1FBE U+0308 U+0301 are 7 bytes, their NFC form U+0390 2.
NFC_BYTES = 4
KEEPING = frozenset(("ByteLevel", "Digits", "Metaspace", "UnicodeScripts"))  # pre-tokenizers that drop no character
SPLITTING = frozenset(("Split", "Punctuation"))  # that may


def most_bytes_of_a_token(tokenizer: JsonTokenizer, pre_tokenizer: Mapping[str, Any] | None = None) -> int | None:
    """Bytes of text that a token stands for at most; None where that has no limit, or none that is known.

    pre_tokenizer: its state, where it came from a file: one that is written in Python cannot tell its own.

    It is known for byte-pair encodings that have a piece for every byte and drop nothing of a text. A vocabulary with
    unknown tokens may give one for any number of characters.
    """
    from tokenizers import models

    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    ratio = _normalizer_bytes(_state(tokenizer.normalizer))
    pre_tokenizer = _state(tokenizer.pre_tokenizer) if pre_tokenizer is None else pre_tokenizer
    if ratio is None or not _drops_nothing(pre_tokenizer) or any(token.lstrip or token.rstrip for token in added):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if any(one.get("type") == "ByteLevel" for one in _parts(pre_tokenizer)):
        pieces = max(map(len, vocabulary)) if vocabulary.keys() >= BYTE_LETTERS else None
    else:
        has_bytes = model.byte_fallback and vocabulary.keys() >= BYTE_PIECES
        pieces = max(len(piece.encode()) for piece in vocabulary) if has_bytes else None
    if pieces is None:
        return None
    return ratio * max([pieces, *(len(token.content.encode()) for token in added)])


def _normalizer_bytes(state: Mapping[str, Any]) -> int | None:
    """Bytes of a text for one byte of the normalized text, at most; None where a normalizer may drop any number."""
    ratio = 1
    for one in _parts(state):
        if one.get("type") == "NFC":
            ratio *= NFC_BYTES
        elif one.get("type") == "Replace":
            old, new = one.get("pattern", {}).get("String"), one.get("content", "")
            if old is None or len(new.encode()) < len(old.encode()):
                return None
        elif one.get("type") != "Prepend":
            return None
    return ratio


def _drops_nothing(state: Mapping[str, Any]) -> bool:
    return all(
        one.get("type") in KEEPING or (one.get("type") in SPLITTING and one.get("behavior") != "Removed")
        for one in _parts(state)
    )


def _state(component: Any) -> Mapping[str, Any]:
    """A component as it stands in tokenizer.json; {} for none."""
    state: Mapping[str, Any] = {} if component is None else json.loads(component.__getstate__())
    return state


def _parts(state: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """A component, or those that it is a sequence of."""
    if state.get("type") == "Sequence":
        for one in state.get("normalizers") or state.get("pretokenizers") or ():
            yield from _parts(one)
    elif state:
        yield state
