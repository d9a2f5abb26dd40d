"""What a folder of files that are not all written yet says of itself, so that the same command goes on with them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from atb_models.errors import ConfigError
from atb_models.files import written_whole
from atb_models.json_file import is_there, read_json
from atb_models.wording import shown

NAME: Final = ".atb_models_quantize.json"
LOCK: Final = ".atb_models_quantize.lock"


class Record:
    """The record in a folder: the command's options and the source's fingerprint, both as JSON values."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def is_there(self) -> bool:
        return is_there(self._path)

    def difference(self, wanted: Mapping[str, Any]) -> str | None:
        """What of `wanted` was noted otherwise, in words; None: nothing, or nothing was noted."""
        if not self.is_there():
            return None
        held = read_json(self._path)
        for name, value in json.loads(json.dumps(wanted)).items():
            if held.get(name) != value and isinstance(value, dict):
                return f"{name} is another one, or has changed since"
            if held.get(name) != value:
                return f"{name} was {shown(held.get(name))}, now it is {shown(value)}"
        return None

    def get(self, name: str) -> Any:
        """A value that was noted on the way; None where there is none."""
        return read_json(self._path).get(name)

    def write(self, content: Mapping[str, Any]) -> None:
        with written_whole(self._path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def note(self, name: str, value: Any) -> None:
        """Add a value to a record that is there."""
        self.write({**read_json(self._path), name: value})

    def remove(self) -> None:
        """The files are whole."""
        self._path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process writes to the folder meanwhile. Raises ConfigError where one does."""
    path = folder / LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process writes to {folder}; wait for its end, or name another folder") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)
