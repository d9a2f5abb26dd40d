"""How messages and tables write sizes, numbers and commands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

GIB = 1 << 30
CHECKOUT = Path(__file__).resolve().parents[1]  # of this project, unless the package is installed as a copy
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


def pip_install(*words: str) -> str:
    """The command that installs into the environment of this Python, whichever one a shell's `pip` belongs to."""
    return shlex.join([sys.executable or "python3", "-m", "pip", "install", *words])


def install_command(extra: str) -> str:
    """The command that installs what an extra of this project needs.

    In a checkout it installs that again, for what an earlier installation noted may be out of date. Elsewhere it names
    the packages themselves, for this project's own name is on no package index.
    """
    if (CHECKOUT / "pyproject.toml").is_file():
        return pip_install("-e", f"{CHECKOUT}[{extra}]")
    try:
        lines = metadata.requires("atb-models") or []
    except metadata.PackageNotFoundError:  # files that were copied without being installed
        lines = []
    packages = [package for line in lines if (package := _needed(line, extra))]
    return pip_install(*packages) if packages else f"{pip_install('-e', f'.[{extra}]')} in the folder of the project"


def _needed(line: str, extra: str) -> str | None:
    """The requirement of a line of metadata, with its conditions other than the extra; None if of no such extra."""
    requirement, _, condition = line.partition(";")
    rest, count = re.subn(rf"""(\s+and\s+)?extra == ["']{extra}["']""", "", condition)
    if not count:
        return None
    return f"{requirement.strip()}; {rest.strip()}" if rest.strip() else requirement.strip()


def named(names: Iterable[str], most: int = 20) -> str:
    """The first names in order, joined by commas, and how many more there are."""
    ordered = sorted(names)
    texts = [name if name.isprintable() and len(name) <= SHOWN else shown(name) for name in ordered[:most]]
    return ", ".join(texts) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")


def shortened(error: object) -> str:
    """The first line of what an exception of a library says, cut to a message's length."""
    line = message_lines(error)[0]
    return line if len(line) <= 2 * SHOWN else f"{line[: 2 * SHOWN]}..."


def precision(dtype: str, quantize: str | None, kv_dtype: str | None = None) -> str:
    """A run's data type and what it stores otherwise: "fp16", or "fp16, weights as w8a16, KV cache as int8".

    Methods with a8 in their names quantise activations too: "fp16, weights and activations as w8a8_dynamic".
    """
    activations = " and activations" if quantize is not None and "a8" in quantize else ""
    weights = "" if quantize is None else f", weights{activations} as {quantize}"
    return dtype + weights + ("" if kv_dtype is None else f", KV cache as {kv_dtype}")
