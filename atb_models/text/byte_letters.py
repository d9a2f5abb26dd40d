"""How byte-level vocabularies spell bytes: GPT-2's letters."""

from __future__ import annotations


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable bytes are themselves, the others are U+0100, U+0101 and so on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_letters()
LETTER_OF_BYTE = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
