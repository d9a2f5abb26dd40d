"""One safetensors file, read with pread: mapped pages would count in the resident memory of the process."""

from __future__ import annotations

import json
import os
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.json_file import check_present
from atb_models.models.dtypes import DTYPES, torch_dtype
from atb_models.models.weights.slices import ReadRun

READABLE = {names.safetensors: torch_dtype(name) for name, names in DTYPES.items()}
MAX_HEADER = 100_000_000  # the format's own limit, bytes


class SafetensorsFile:
    """Eight bytes of header length (little endian), a JSON header, then the tensors' bytes in row-major order."""

    def __init__(self, path: Path) -> None:
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
            header, data = self._header()
            for name, entry in header.items():
                if name != "__metadata__":
                    self._add(name, entry, data)
        except BaseException:
            self.close()
            raise

    def reader(self, name: str) -> ReadRun:
        """What reads flat runs of elements of the tensor."""
        offset, itemsize = self._offsets[name], self.tensors[name][1].itemsize

        def read_run(first: int, out: Tensor) -> None:
            self._read(out.view(torch.uint8).numpy().data, offset + first * itemsize, name)

        return read_run

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _header(self) -> tuple[dict[str, Any], int]:
        """The JSON header and the offset of the first tensor's bytes."""
        if self._size < 8:
            raise CheckpointError(f"{self.path} is truncated: {self._size} bytes hold no safetensors header")
        prefix = bytearray(8)
        self._read(memoryview(prefix), 0, "header")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER:
            raise CheckpointError(f"{self.path} is no safetensors file: its header would be {length} bytes long")
        if 8 + length > self._size:
            raise CheckpointError(f"{self.path} is truncated: its header needs {8 + length} bytes of {self._size}")
        raw = bytearray(length)
        self._read(memoryview(raw), 8, "header")
        try:
            header = json.loads(raw.decode("utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{self.path}: the safetensors header is not valid JSON: {error}") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path}: the safetensors header is no JSON object")
        return header, 8 + length

    def _add(self, name: str, entry: Any, data: int) -> None:
        """Note one tensor of the header after checking that its bytes are there."""
        try:
            kind, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            sane = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            sane = False
        if not sane:
            raise CheckpointError(f"{self.path}: the header's entry of tensor {name} is damaged: {entry!r}")
        if kind not in READABLE:
            raise CheckpointError(f"{self.path}: tensor {name} is {kind}, but only {', '.join(READABLE)} can be read")
        dtype = READABLE[kind]
        needed = prod(shape) * dtype.itemsize
        if end - begin != needed:
            raise CheckpointError(
                f"{self.path}: tensor {name} of shape {shape} and type {kind} needs {needed} bytes, "
                f"but the header gives it {end - begin}"
            )
        if data + end > self._size:
            raise CheckpointError(
                f"{self.path} is truncated: tensor {name} ends at byte {data + end}, the file at {self._size}; "
                "fetch it again"
            )
        self.tensors[name] = (shape, dtype)
        self._offsets[name] = data + begin

    def _read(self, buffer: memoryview, offset: int, name: str) -> None:
        """Fill `buffer` from `offset`; a read may return less than was asked for."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: reading tensor {name} failed: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{self.path} was cut to {offset + done} bytes while tensor {name} was read")
            done += count
