"""The files of users: text files are read in one way; result files are complete or absent.

Text is UTF-8 with or without a byte order mark, and its lines end at \\n or \\r\\n only: `str.splitlines` splits at
U+0085, U+2028, \\x0b, \\x1c and others too, which may be part of a text. Result files are readable by the owner and the
group only.
"""

from __future__ import annotations

import codecs
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
WIDE_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # UTF-32's begins like the first


def read_text(path: Path, place: str = "", error: type[AtbError] = ConfigError) -> str:
    """The text of a file, its mark left out and each line end as \\n.

    place: what messages call the file, else its path. Raises `error` for a file that cannot be read and, with byte and
    line, for one that is not UTF-8.
    """
    return decode_text(read_bytes(path, place, error), place or str(path), error)


def read_lines(path: Path, place: str = "", error: type[AtbError] = ConfigError) -> list[str]:
    """The lines of a file without their ends. Raises `error` as `read_text` does."""
    return read_text(path, place, error).split("\n")


def read_bytes(path: Path, place: str = "", error: type[AtbError] = ConfigError) -> bytes:
    """The bytes of a file. Raises `error` naming it when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as failure:
        raise error(f"{place or path} cannot be read: {failure.strerror}") from None


def decode_text(raw: bytes, place: str, error: type[AtbError] = ConfigError) -> str:
    """The text in the bytes of a file, as `read_text` gives it; place: what messages call it."""
    data = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as failure:
        wide = next((f" (it looks like {kind})" for mark, kind in WIDE_MARKS.items() if raw.startswith(mark)), "")
        byte, line = failure.start + len(raw) - len(data), data.count(b"\n", 0, failure.start) + 1
        why = f"{failure.reason} at byte {byte}, in line {line}{wide}"
        raise error(f"{place} is not UTF-8 text: {why}; save it as UTF-8") from None
    return text.replace("\r\n", "\n")


def expanded(path: Path | str) -> Path:
    """The path with ~ replaced; ConfigError where this user has no home folder, or there is no user of that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: {Path(path).parts[0]} stands for no folder here; give the whole path") from None


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A context manager that gives a temporary path; that file replaces `target` if the block ends without an error.

    The folder is made if needed; a link is followed. To a device, a pipe or the file of stdout or stderr, which cannot
    be replaced, the contents are appended. Raises AtbError, which names the file, if it cannot be written; then no
    incomplete file is left.
    """
    target = Path(os.path.abspath(expanded(target)))
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
    target = Path(os.path.abspath(expanded(target)))
    if os.path.isdir(target):
        raise ConfigError(f"{name}: {target} is a folder; name a file")
    if os.path.exists(target) and not os.path.isfile(target):
        if not os.access(target, os.W_OK):
            raise ConfigError(f"{name}: {target} cannot be written by this user")
        return
    check_folder(Path(os.path.realpath(target)).parent, name)


def check_folder(folder: Path, name: str) -> None:
    """Raises ConfigError if `folder` cannot be made or written to. name: the variable or flag that chose it."""
    folder = Path(os.path.abspath(expanded(folder)))
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
