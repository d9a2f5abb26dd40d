"""SentencePiece models written by hand: the bytes of sentencepiece_model.proto, so that no test depends on training."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE = 1, 2
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
START = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]


def model(
    pieces: Iterable[tuple[str, float, int]],
    kind: int = BPE,
    *,
    byte_fallback: bool = True,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    blanks_behind: bool = False,
) -> bytes:
    """A model of these pieces: text, score, kind of piece."""
    data = b"".join(_message(1, _text(1, text) + _float(2, score) + _number(3, sort)) for text, score, sort in pieces)
    trainer = _number(3, kind) + _number(35, byte_fallback) + _number(40, 0) + _number(41, 1) + _number(42, 2)
    trainer += _number(24, blanks_behind)
    normalizer = _text(1, "identity") + _number(3, add_dummy_prefix) + _number(4, remove_extra_whitespaces)
    return data + _message(2, trainer) + _message(3, normalizer)


def bpe(words: Sequence[str], letters: str, extra: Iterable[tuple[str, float, int]] = ()) -> bytes:
    """As Llama's: bytes, then merged pieces by falling score, then single letters."""
    scored = [(word, -float(rank), NORMAL) for rank, word in enumerate(words)]
    singles = [(letter, -float(len(words) + rank), NORMAL) for rank, letter in enumerate(letters)]
    return model([*START, *BYTES, *scored, *singles, *extra])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
