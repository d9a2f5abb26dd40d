"""Files with one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError


def read_objects(path: Path, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects with their line numbers, without empty lines. name: the flag or argument that gave the path.

    Raises ConfigError for a file that cannot be read or has no object, and for a line that is something else.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise ConfigError(f"{name} {path} cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name} {path}, line {number} is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{name} {path}, line {number} must be a JSON object, not {type(value).__name__}")
        found.append((number, value))
    if not found:
        raise ConfigError(f"{name} {path} is empty; it needs one JSON object a line")
    return found
