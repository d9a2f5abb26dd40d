"""Result files: complete or absent, readable by the owner and the group only."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from atb_models.errors import AtbError, ConfigError

FOLDER_MODE, FILE_MODE = 0o750, 0o640
EXPERT_COUNTS_FOLDER = Path("expert_hotpot")


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A context manager that gives a temporary path; that file replaces `target` if the block ends without an error.

    The folder is made if needed; a link is followed. To a device, a pipe or the file of stdout or stderr, which cannot
    be replaced, the contents are appended. Raises AtbError, which names the file, if it cannot be written; then no
    incomplete file is left.
    """
    target = Path(os.path.abspath(target.expanduser()))
    temporary = None
    try:
        if _is_stream(target):
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / "result"
                with open(Path(folder) / "result", "rb") as result, target.open("ab") as stream:
                    shutil.copyfileobj(result, stream)
            return
        real = Path(os.path.realpath(target))
        temporary = real.with_name(f".{real.name}.{os.getpid()}")
        real.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(FILE_MODE)
        temporary.replace(real)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise AtbError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def check_file(target: Path, name: str) -> None:
    """Raises ConfigError if `written_whole` cannot write `target`. name: the variable or flag that chose it."""
    target = Path(os.path.abspath(target.expanduser()))
    if os.path.isdir(target):
        raise ConfigError(f"{name}: {target} is a folder; name a file")
    if os.path.exists(target) and not os.path.isfile(target):
        if not os.access(target, os.W_OK):
            raise ConfigError(f"{name}: {target} cannot be written by this user")
        return
    check_folder(Path(os.path.realpath(target)).parent, name)


def check_folder(folder: Path, name: str) -> None:
    """Raises ConfigError if `folder` cannot be made or written to. name: the variable or flag that chose it."""
    folder = Path(os.path.abspath(folder.expanduser()))
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        raise ConfigError(f"{name}: {existing} is no folder, so nothing can be written to {folder}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: this user cannot write to {existing}, where results go to {folder}")


def _is_stream(target: Path) -> bool:
    """Whether contents can only be appended to `target`. Raises IsADirectoryError for a folder."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError("it is a folder")
    return not stat.S_ISREG(status.st_mode) or any(_is_open_as(number, status) for number in (1, 2))


def _is_open_as(number: int, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(number), status)
    except OSError:  # the stream is closed
        return False
