"""JSON: the files of a checkpoint folder, lines of JSON, single values. Every failure names the place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atb_models.errors import AtbError, CheckpointError, ConfigError
from atb_models.files import decode_text, read_bytes

_LFS_POINTER = b"version https://git-lfs"
_BLANKS = " \t\r"  # what JSON takes as such within a line
MOST_BYTES = 1 << 28  # the largest published JSON file of a checkpoint, a tokenizer.json, has a tenth of that


def is_there(path: Path) -> bool:
    """Whether there is a file or a link, also a broken one: that is damage, not an absent file."""
    return path.exists() or path.is_symlink()


def check_present(path: Path, why: str = "") -> None:
    """Raise CheckpointError unless `path` is a file. The error tells a broken link and a git-lfs pointer apart."""
    because = f" ({why})" if why else ""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which does not exist{because}: "
            "the download was not finished or the cache was partly deleted; fetch it again"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist{because}; fetch the checkpoint again or give another folder")
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if start == _LFS_POINTER:
        raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself; run 'git lfs pull' in its folder")


def check_size(path: Path, most: int) -> None:
    """Raise CheckpointError for a file of more than `most` bytes, before it is read and parsed into many times that."""
    check_present(path)
    size = path.stat().st_size
    if size > most:
        raise CheckpointError(f"{path} has {size} bytes, but at most {most} are read; it is no such file, or damaged")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError if it is missing, unreadable or no object."""
    return json_object(checkpoint_text(path), str(path), CheckpointError)


def checkpoint_text(path: Path) -> str:
    """The text of a checkpoint's file. Raises CheckpointError if it is missing, unreadable or too large to be one."""
    check_size(path, MOST_BYTES)
    return decode_text(read_bytes(path, error=CheckpointError), str(path), CheckpointError)


def json_object(text: str, place: str, error: type[AtbError] = ConfigError) -> dict[str, Any]:
    """The JSON object in a text. Raises `error` naming the place where it is none."""
    value = parse_json(text, place, error)
    if not isinstance(value, dict):
        raise error(f"{place} holds a JSON {type(value).__name__} where an object is expected")
    return value


def parse_json(text: str, place: str, error: type[AtbError] = ConfigError) -> Any:
    """The value of a JSON text. Raises `error` naming the place where it is no JSON or an object has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError:
        raise error(f"{place} is not valid JSON: its lists and objects are nested too deeply") from None
    except ValueError as failure:  # of the form, or a key that stands twice
        digits = re.search(r"value has (\d+) digits", str(failure))  # more than Python makes a number of
        why = f"it holds a number of {digits[1]} digits" if digits else failure
        raise error(f"{place} is not valid JSON: {why}") from None


def json_lines(text: str, place: str, error: type[AtbError] = ConfigError) -> Iterator[tuple[int, Any]]:
    """(line, value) of a text with one JSON value a line, blank lines left out. Raises `error` naming the line."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(_BLANKS):
            yield number, parse_json(line, f"{place}, line {number}", error)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twin[:80]!r} stands twice in one object")
    return values
