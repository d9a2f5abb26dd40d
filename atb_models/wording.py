"""How messages and tables say sizes and numbers."""

from __future__ import annotations

GIB = 1 << 30


def gib(size: int) -> str:
    """As GiB with two digits; MiB below a tenth of one."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.1f} MiB"


def counted(number: int, noun: str) -> str:
    """As "1 sequence", "2 sequences"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
