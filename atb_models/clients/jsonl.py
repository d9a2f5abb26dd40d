"""Files with one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError
from atb_models.files import read_text
from atb_models.json_file import json_lines


def read_objects(path: Path, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects with their line numbers, without empty lines. name: the flag or argument that gave the path.

    Raises ConfigError for a file that cannot be read or has no object, and for a line that is something else.
    """
    found = []
    for number, value in json_lines(read_text(path, f"{name} {path}"), f"{name} {path}"):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} {path}, line {number} must be a JSON object, not {type(value).__name__}")
        found.append((number, value))
    if not found:
        raise ConfigError(f"{name} {path} is empty; it needs one JSON object a line")
    return found
