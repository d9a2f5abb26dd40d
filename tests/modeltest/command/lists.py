"""The bracket lists of the grammar: batch sizes, pairs, parallel sizes. Blanks count for nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

NUMBER = "[0-9]{1,9}"
FLAT = re.compile(rf"{NUMBER}(,{NUMBER})*")
SIGNED = re.compile(r"\[-?[0-9]{1,9}(,-?[0-9]{1,9})*\]")
Numbers = tuple[int, ...]
T = TypeVar("T")


def is_open(text: str) -> bool:
    """Whether the list that starts in `text` goes on in the next word, as `[[1,` does when the shell cut at a blank."""
    text = text.rstrip()
    return text.count("[") > text.count("]") or bool(re.fullmatch(r"[\[\]0-9, -]*,", text))


def number(text: str) -> int | None:
    """A whole number of 1 or more; None for anything else."""
    return int(text) or None if re.fullmatch(NUMBER, text) else None


def flat(text: str) -> Numbers | None:
    """`1`, `1,4` or `[1,4]`, all of 1 or more; None for anything else."""
    plain = _packed(text)
    inside = plain[1:-1] if plain.startswith("[") and plain.endswith("]") else plain
    values = tuple(map(int, inside.split(","))) if FLAT.fullmatch(inside) else (0,)
    return values if all(values) else None


def nested(text: str, one: Callable[[str], T | None]) -> tuple[T, ...] | None:
    """`[[1,4],[1,8]]`, of whose inner lists `one` makes the parts; None where the whole or a part is none."""
    plain = _packed(text)
    if not (plain.startswith("[[") and plain.endswith("]]")):
        return None
    parts = tuple(part for inner in plain[2:-2].split("],[") if (part := one(f"[{inner}]")) is not None)
    return parts if len(parts) == plain.count("],[") + 1 else None


def signed(text: str) -> Numbers | None:
    """`[-1,8]`; None for anything else."""
    plain = _packed(text)
    return tuple(map(int, plain[1:-1].split(","))) if SIGNED.fullmatch(plain) else None


def _packed(text: str) -> str:
    """Without blanks, but for those within a number, which stay and make it none."""
    return re.sub(r"\s*([\[\],])\s*", r"\1", text.strip())
