"""How messages and tables write sizes and numbers."""

from __future__ import annotations

GIB = 1 << 30


def gib(size: int) -> str:
    """In GiB with two decimals; in MiB below a tenth of a GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.1f} MiB"


def counted(number: int, noun: str) -> str:
    """Such as "1 sequence" and "2 sequences"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
