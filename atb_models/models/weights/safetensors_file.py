"""One safetensors file, read with pread: mapped pages would count in the resident memory of the process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.json_file import check_present
from atb_models.models.dtypes import readable
from atb_models.models.weights.finite import PIECE_BYTES, has_large, is_looked_at, words_of
from atb_models.models.weights.safetensors_header import FORMAT_MOST_BYTES, LENGTH_BYTES, MOST_BYTES, parse_header
from atb_models.models.weights.slices import ReadRun
from atb_models.wording import named


class SafetensorsFile:
    """A header (see safetensors_header.py), then the tensors' bytes in row-major order.

    quantized: it may hold the integers of a quantised checkpoint.
    """

    def __init__(self, path: Path, *, quantized: bool = False) -> None:
        check_present(path)
        if sys.byteorder != "little":
            raise CheckpointError(f"{path}: safetensors files are little endian, this machine is not")
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self._size = os.fstat(self._fd).st_size
            self.tensors: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
            self._offsets: dict[str, int] = {}
            self._read_header(readable(quantized=quantized))
        except BaseException:
            self.close()
            raise

    def reader(self, name: str) -> ReadRun:
        """What reads flat runs of elements of the tensor."""
        offset, dtype = self._offsets[name], self.tensors[name][1]
        itemsize = dtype.itemsize

        def read_run(first: int, out: Tensor) -> bool:
            """In pieces, each of which is looked at while it is in the processor's cache."""
            begin, step = offset + first * itemsize, PIECE_BYTES // itemsize
            if not is_looked_at(dtype):
                self._read(out.view(torch.uint8).numpy().data, begin, name)
                return False
            words, large = words_of(out), False
            for at in range(0, len(words), step):
                piece = words[at : at + step]
                self._read(piece.view(np.uint8).data, begin + at * itemsize, name)
                large = large or has_large(piece)
            return large

        return read_run

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_header(self, dtypes: dict[str, torch.dtype]) -> None:
        """Note the tensors and the place of each one's bytes."""
        if self._size < LENGTH_BYTES:
            raise CheckpointError(f"{self.path} is truncated: {self._size} bytes hold no safetensors header")
        prefix = bytearray(LENGTH_BYTES)
        self._read(memoryview(prefix), 0, "header")
        length = int.from_bytes(prefix, "little")
        if length > FORMAT_MOST_BYTES:
            raise CheckpointError(f"{self.path} is no safetensors file: its header would be {length} bytes long")
        data = LENGTH_BYTES + length
        if data > self._size:
            raise CheckpointError(f"{self.path} is truncated: its header needs {data} bytes of {self._size}")
        if length > MOST_BYTES:
            raise CheckpointError(f"{self.path}: the header is {length} bytes long, but at most {MOST_BYTES} are read")
        raw = bytearray(length)
        self._read(memoryview(raw), LENGTH_BYTES, "header")
        for name, entry in parse_header(raw, self._size - data, self.path).items():
            if entry.dtype not in dtypes:
                known = ", ".join(dtypes)
                raise CheckpointError(
                    f"{self.path}: tensor {named([name])} is {entry.dtype}, but only {known} can be read"
                )
            self.tensors[name] = entry.shape, dtypes[entry.dtype]
            self._offsets[name] = data + entry.begin

    def _read(self, buffer: memoryview, offset: int, name: str) -> None:
        """Fill `buffer` from `offset`; a read may return less than was asked for."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                reading = f"{self.path}: reading tensor {named([name])}"
                raise CheckpointError(f"{reading} failed: {error.strerror}") from error
            if count == 0:
                cut = f"{self.path} was cut to {offset + done} bytes"
                raise CheckpointError(f"{cut} while tensor {named([name])} was read")
            done += count
