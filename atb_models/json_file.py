"""The files of a checkpoint folder, above all the JSON ones: every failure names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atb_models.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs"


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
    with path.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise CheckpointError(f"{path} is a git-lfs pointer, not the file itself; run 'git lfs pull' in its folder")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises CheckpointError if it is missing, unreadable or no object."""
    check_present(path)
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: it is not UTF-8 text ({error.reason})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value
