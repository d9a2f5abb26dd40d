"""Tokens that stand for single bytes, <0x00> to <0xFF>: so SentencePiece writes what its vocabulary lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BROKEN_BYTES = {0xDC00 + byte: REPLACEMENT for byte in range(0x80, 0x100)}  # what surrogateescape makes of them
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def with_replacements(pieces: Iterable[str]) -> list[str]:
    """The pieces of a text, where each byte piece that belongs to no whole character is a replacement character.

    So decodes SentencePiece. The decoder of the tokenizers library makes replacements of all the byte pieces in a row
    where one of them is broken, so that a whole character shown before would have to be taken back.
    """
    result: list[str] = []
    for is_byte, group in groupby(pieces, lambda piece: BYTE_PIECE.fullmatch(piece) is not None):
        run = list(group)
        result += _whole_or_replaced(run) if is_byte else run
    return result


def text_of_bytes(data: bytes) -> str:
    """The text of bytes, where each byte that belongs to no whole character is a replacement character."""
    return data.decode("utf-8", "surrogateescape").translate(BROKEN_BYTES)


def _whole_or_replaced(run: list[str]) -> list[str]:
    """Each broken byte decodes to one surrogate, each whole character to as many bytes as it has."""
    text = bytes(int(piece[3:5], 16) for piece in run).decode("utf-8", "surrogateescape")
    result: list[str] = []
    for character in text:
        if "\udc80" <= character <= "\udcff":
            result.append(REPLACEMENT)
        else:
            result += run[len(result) : len(result) + len(character.encode())]
    return result
