"""A checkpoint folder as a source of weights: which files it has, and one rank's slice of any of their tensors."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from atb_models import env
from atb_models.errors import CheckpointError
from atb_models.json_file import check_present, is_there
from atb_models.models.weights.bin_file import BinFile
from atb_models.models.weights.finite import count_not_finite
from atb_models.models.weights.index import indexed_files
from atb_models.models.weights.modelslim_files import STEM, modelslim_files
from atb_models.models.weights.safetensors_file import SafetensorsFile
from atb_models.models.weights.slices import ReadRun, copy_slice, slice_shape
from atb_models.wording import named

logger = logging.getLogger(__name__)

PERMISSION_SWITCH = "MINDIE_CHECK_INPUTFILES_PERMISSION"
LAYOUTS = ("model.safetensors", "pytorch_model.bin")  # each also in pieces, listed by <name>.index.json
# AutoGPTQ's names, by bits and group; also in pieces.
_GPTQ_LAYOUT = re.compile(r"(gptq_model-\w+-\w+\.safetensors)(\.index\.json)?")


class WeightFile(Protocol):
    """One opened file of tensors."""

    path: Path
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]  # name -> shape and dtype

    def reader(self, name: str) -> ReadRun:
        """What reads flat runs of elements of the tensor."""

    def close(self) -> None:
        """Release the file."""


class Checkpoint:
    """All tensors of a folder. `files` maps a tensor's name to the opened file that holds it.

    listing: the index, or the only file.
    """

    def __init__(self, listing: Path, files: dict[str, WeightFile], opened: list[WeightFile]) -> None:
        self.listing = listing
        self._files = files
        self._opened = opened

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._files)

    def spare(self) -> frozenset[str]:
        return frozenset()

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's whole shape."""
        return self._files[name].tensors[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """The type of its numbers in the file."""
        return self._files[name].tensors[name][1]

    def where(self, name: str) -> str:
        """The file that holds the tensor, or else the one that lists all: for error messages."""
        return str(self._files[name].path if name in self._files else self.listing)

    def read_into(self, name: str, dim: int | None, start: int, stop: int, target: Tensor) -> int:
        """Fill `target` (any device and dtype) with [start, stop) along `dim` of the tensor; dim None: all of it.

        Returns how many numbers of the slice are infinite or no numbers, be it only in the target's dtype.
        """
        shape, dtype = self._files[name].tensors[name]
        large = copy_slice(self._files[name].reader(name), shape, dtype, dim, start, stop, target)
        return count_not_finite(target) if large else 0

    def read(self, name: str, dim: int | None = None, start: int = 0, stop: int = 0) -> Tensor:
        """The slice as a new CPU tensor of the dtype on disk."""
        shape, dtype = self._files[name].tensors[name]
        target = torch.empty(slice_shape(shape, dim, start, stop), dtype=dtype)
        self.read_into(name, dim, start, stop, target)
        return target

    def close(self) -> None:
        """Close all files."""
        for file in self._opened:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def has_weights(folder: Path) -> bool:
    """Whether a quantised checkpoint's files are there, those of ModelSlim's names aside."""
    return any(is_there(folder / f"{layout}{end}") for layout in _layouts(folder, True) for end in ("", ".index.json"))


def open_checkpoint(folder: Path | str, *, quantized: bool = False, log: bool = True) -> Checkpoint:
    """Open model.safetensors, a sharded set with its index, or pytorch_model*.bin, in this order of preference.

    quantized: its files may hold integers and 8-bit floats, which the scheme of a quantised checkpoint unpacks, and
    those of ModelSlim's own names come first, those of AutoGPTQ's last. log: whether to warn of files that others may
    change.

    Every file is opened and its table of tensors checked before a weight is read. Raises CheckpointError naming the
    file (and tensor) that is missing, damaged, or of a kind this project does not read.
    """
    folder = Path(folder)
    if quantized and (found := modelslim_files(folder)) is not None:
        return _open(*found, quantized, log)
    for layout in _layouts(folder, quantized):
        single, index = folder / layout, folder / f"{layout}.index.json"
        if is_there(single):
            check_present(single)
            return _open({single: None}, single, quantized, log)
        if is_there(index):
            return _open(indexed_files(folder, index), index, quantized, log)
    loose = sorted(path.name for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind))
    others = f"; {', '.join(loose[:4])} alone cannot be read" if loose else ""
    wanted = ", ".join(f"{layout} or {layout}.index.json" for layout in LAYOUTS)
    wanted += f" or {STEM}*.safetensors" if quantized else ""
    raise CheckpointError(f"{folder} holds no weights: none of {wanted} exists{others}")


def _layouts(folder: Path, quantized: bool) -> tuple[str, ...]:
    """The names that a file or, with .index.json, an index of the weights may have."""
    found = (_GPTQ_LAYOUT.fullmatch(path.name) for path in folder.glob("gptq_model-*") if quantized)
    return (*LAYOUTS, *sorted({match[1] for match in found if match}))


def _open(wanted: dict[Path, set[str] | None], listing: Path, quantized: bool, log: bool) -> Checkpoint:
    """Open the files; a tensor that the listing promises must be in its file."""
    if log:
        _warn_of_permissions(list(wanted))
    files: dict[str, WeightFile] = {}
    opened: list[WeightFile] = []
    unlisted: list[tuple[str, WeightFile]] = []
    listed = {name for promised in wanted.values() for name in promised or ()}
    try:
        for path, promised in sorted(wanted.items()):
            kind = BinFile if path.suffix == ".bin" else SafetensorsFile
            file: WeightFile = kind(path, quantized=quantized)
            opened.append(file)
            missing = sorted((promised or set()) - file.tensors.keys())
            if missing:
                raise CheckpointError(
                    f"{listing} puts {named(missing[:1])} into {path}, but the file does not hold it"
                    f" ({len(missing)} missing)"
                )
            for name in file.tensors:
                if (promised is None or name in promised) and files.setdefault(name, file) is not file:
                    raise CheckpointError(f"{files[name].path} and {path} both hold tensor {named([name])}")
            unlisted += [(name, file) for name in file.tensors if promised is not None and name not in promised]
        for name, file in unlisted:
            if files.setdefault(name, file) is not file and name not in listed:
                both = f"{files[name].path} and {file.path} both hold"
                raise CheckpointError(f"{listing} does not list tensor {named([name])}, which {both}")
    except BaseException:
        for file in opened:
            file.close()
        raise
    return Checkpoint(listing, files, opened)


def _warn_of_permissions(paths: list[Path]) -> None:
    """One warning for files that somebody else could change; the variable 0 silences it."""
    if not env.get(PERMISSION_SWITCH):
        return
    trusted = (0, os.getuid())
    loose = [path for path in paths if path.stat().st_mode & 0o022 or path.stat().st_uid not in trusted]
    if loose:
        logger.warning(
            "%s%s can be changed by other users (writable for group or others, or another owner): "
            "chmod go-w, or set %s=0 if that is meant",
            loose[0],
            f" and {len(loose) - 1} more" if len(loose) > 1 else "",
            PERMISSION_SWITCH,
        )
