"""One pytorch_model*.bin file: tensors only (weights_only), mapped, and let go page by page after use."""

from __future__ import annotations

import ctypes
import logging
import mmap
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.json_file import check_present
from atb_models.models.dtypes import readable
from atb_models.models.weights.finite import PIECE_BYTES, has_large, is_looked_at, words_of
from atb_models.models.weights.slices import BAND_BYTES, ReadRun
from atb_models.wording import named, shortened

logger = logging.getLogger(__name__)


class BinFile:
    """What torch.save wrote. A file of the format before torch 1.6 cannot be mapped and is read whole.

    quantized: it may hold the integers of a quantised checkpoint.
    """

    def __init__(self, path: Path, *, quantized: bool = False) -> None:
        check_present(path)
        with path.open("rb") as stream:
            mapped = stream.read(4) == b"PK\x03\x04"
        if mapped and not _has_zip_end(path):
            raise CheckpointError(f"{path} is truncated: the zip archive's end is missing or damaged; fetch it again")
        if not mapped:
            logger.warning("%s has the format before torch 1.6: it is read whole into memory", path)
        loaded = _loaded(path, mapped)
        if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
            raise CheckpointError(f"{path} holds no dictionary of tensors")
        dtypes = tuple(readable(quantized=quantized).values())
        for name, value in loaded.items():
            _check_tensor(name, value, path, dtypes)
        needed = sum(value.untyped_storage().nbytes() for value in _one_of_each_storage(loaded.values()))
        if needed > path.stat().st_size:
            raise CheckpointError(f"{path} is damaged: its tensors need {needed} bytes, it has {path.stat().st_size}")
        self.path = path
        self._mapped = mapped
        self._loaded: dict[str, Tensor] = loaded
        self.tensors = {name: (tuple(value.shape), value.dtype) for name, value in loaded.items()}

    def reader(self, name: str) -> ReadRun:
        """What reads flat runs of elements of the tensor."""
        value = self._loaded[name]
        in_place = self._mapped and value.is_contiguous()  # otherwise flat is a copy, not the mapped file
        flat = value.reshape(-1)
        pieces = PIECE_BYTES // flat.element_size()
        looked_at = is_looked_at(flat.dtype)

        def read_run(first: int, out: Tensor) -> bool:
            large = False
            step = BAND_BYTES // flat.element_size()
            for begin in range(0, out.numel(), step):
                band = out[begin : begin + step]
                run = flat[first + begin : first + begin + band.numel()]
                for piece, values in zip(band.split(pieces), run.split(pieces), strict=True):
                    piece.copy_(values)
                    large = large or (looked_at and has_large(words_of(piece)))
                if in_place:
                    _let_go(run)
            return large

        return read_run

    def close(self) -> None:
        """Drop the mapping."""
        self._loaded = {}


def _let_go(tensor: Tensor) -> None:
    """Unmap the whole pages under a tensor's storage from this process; the file gives them back if read again.

    The storage and not only what was read: the kernel maps pages around each one that is touched.
    """
    storage, page = tensor.untyped_storage(), mmap.PAGESIZE
    begin = -(-storage.data_ptr() // page) * page
    end = (storage.data_ptr() + storage.nbytes()) // page * page
    if end > begin:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(mmap.MADV_DONTNEED))


def _loaded(path: Path, mapped: bool) -> Any:
    """What torch makes of the file; CheckpointError for whatever it says of one that it cannot read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        what = "is refused: it holds more than tensors, or is damaged"
        raise CheckpointError(f"{path} {what}: {shortened(error)}") from error
    except Exception as error:  # a damaged pickle can end in an exception of any kind
        raise CheckpointError(f"{path} cannot be read, it may be truncated or damaged: {shortened(error)}") from error


def _has_zip_end(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # the end is there and damaged
        return False


def _check_tensor(name: str, value: Any, path: Path, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{path} holds no dictionary of tensors: {named([name])} is a {type(value).__name__}")
    if value.dtype not in dtypes:
        known = ", ".join(map(str, dtypes))
        raise CheckpointError(f"{path}: tensor {named([name])} is {value.dtype}, but only {known} can be read")
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise CheckpointError(f"{path}: tensor {named([name])} is {value.layout} on {value.device}, not plain numbers")


def _one_of_each_storage(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    return {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}.values()
