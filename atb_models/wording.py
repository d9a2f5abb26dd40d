"""How messages and tables write sizes, numbers and commands."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata

GIB = 1 << 30
SHOWN = 120  # characters of a value in a message


def message_lines(error: object) -> list[str]:
    """The lines of what an exception of a library says, at least one: its class where it says nothing."""
    return [line for line in str(error).strip().split("\n") if line] or [type(error).__name__]


def gib(size: int) -> str:
    """In GiB with two decimals; in MiB below a tenth of a GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.1f} MiB"


def counted(number: int, noun: str) -> str:
    """Such as "1 sequence" and "2 sequences"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown(value: object) -> str:
    """A value that somebody gave, as a message shows it: however long, deep or large it is, on one short line."""
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN:
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a number in it of thousands of digits
        return f"a {type(value).__name__} that is too deep or too large to be shown"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def install_command(extra: str) -> str:
    """The command that installs what an extra of this project needs, from a checkout or a wheel.

    It names the packages themselves, for this project's own name is on no package index.
    """
    try:
        lines = metadata.requires("atb-models") or []
    except metadata.PackageNotFoundError:  # a checkout that is run without being installed
        lines = []
    needed = [line.split(";")[0].strip() for line in lines if re.search(rf"""extra == ["']{extra}["']""", line)]
    packages = " ".join(f"'{package}'" for package in needed)
    return f"pip install {packages}" if packages else f"pip install '.[{extra}]' in the folder of the project"


def named(names: Iterable[str], most: int = 20) -> str:
    """The first names in order, joined by commas, and how many more there are."""
    ordered = sorted(names)
    texts = [name if name.isprintable() and len(name) <= SHOWN else shown(name) for name in ordered[:most]]
    return ", ".join(texts) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def shortened(error: object) -> str:
    """The first line of what an exception of a library says, cut to a message's length."""
    line = message_lines(error)[0]
    return line if len(line) <= 2 * SHOWN else f"{line[: 2 * SHOWN]}..."


def precision(dtype: str, quantize: str | None) -> str:
    """A run's data type and how it stores its weights: "fp16", or "fp16, weights as w8a16"."""
    return dtype if quantize is None else f"{dtype}, weights as {quantize}"
