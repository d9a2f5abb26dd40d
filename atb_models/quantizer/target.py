"""The folder that is written: whether it may be, what else lies in it, and what is copied to it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from atb_models.errors import CapacityError, ConfigError
from atb_models.files import check_folder, expanded, written_whole
from atb_models.quantizer.record import LOCK, Record
from atb_models.wording import gib, named

# What holds weights, or tells where or how they are stored: the new checkpoint has its own.
_WEIGHTS: Final = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx)|.*\.index\.json|quant_model_description.*\.json"
    r"|quantize_config\.json|quant_config\.json"
)
_TEMPORARY: Final = re.compile(r"\..+\.\d+")  # of `written_whole` in a process that was killed
_SPARE: Final = 16 << 20  # bytes for JSON files and the file system's own


def checked_target(source: Path, target: Path, *, overwrite: bool) -> Path:
    """The whole path of the folder that is to be written; nothing is done to it.

    Raises ConfigError where it is the source's folder, in it or around it, or holds files that are not an unfinished
    result, unless they are a checkpoint's and `overwrite` allows to delete them.
    """
    target = Path(os.path.realpath(expanded(target)))
    real = Path(os.path.realpath(source))
    if target == real or target in real.parents or real in target.parents:
        raise ConfigError(f"{target} would be written and {real} is read: name a folder that is neither it nor in it")
    check_folder(target, "DST")
    held = sorted(path.name for path in target.iterdir() if path.name != LOCK) if target.is_dir() else []
    if held and not Record(target).is_there() and not overwrite:
        raise ConfigError(f"{target} is not empty, it holds {named(held, 3)}; name a new folder, or allow --overwrite")
    return target


def begin_anew(target: Path) -> None:
    """Delete the files of a checkpoint, or of an unfinished one, that a new one replaces; folders in it stay.

    Raises ConfigError for a folder that holds anything else.
    """
    held = [path for path in target.iterdir() if path.name != LOCK]
    if held and not (target / "config.json").is_file() and not Record(target).is_there():
        names = named([path.name for path in held], 3)
        raise ConfigError(f"{target} is no checkpoint, it holds {names}: --overwrite deletes only a checkpoint's files")
    for path in held:
        if path.is_symlink() or path.is_file():
            path.unlink()


def remove_temporary_files(target: Path) -> None:
    """Those of a process that was killed while it wrote to the folder."""
    for path in target.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def other_files(source: Path) -> Iterator[Path]:
    """The checkpoint's files beside weights and config.json: the tokenizer's, code, licence; not hidden ones."""
    for path in sorted(source.iterdir()):
        hidden_or_ours = path.name.startswith(".") or path.name == "config.json"
        if path.is_file() and not hidden_or_ours and not _WEIGHTS.fullmatch(path.name):
            yield path


def copy_files(files: Iterable[Path], target: Path) -> None:
    for path in files:
        with written_whole(target / path.name) as temporary:
            shutil.copyfile(path, temporary)


def check_space(target: Path, needed: int) -> None:
    """Raise CapacityError, with both numbers, where so many bytes do not fit onto the disk."""
    free = shutil.disk_usage(target).free
    if needed + _SPARE > free:
        raise CapacityError(
            f"{target}: {gib(needed + _SPARE)} are still to be written, but only {gib(free)} are free on its disk; make"
            " room, or name a folder on another disk"
        )
