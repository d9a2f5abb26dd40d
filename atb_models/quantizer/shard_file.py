"""One safetensors file, written tensor by tensor in any order: complete under its name, or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atb_models.files import written_whole
from atb_models.models.dtypes import DTYPES, torch_dtype
from atb_models.models.weights.safetensors_header import LENGTH_BYTES
from atb_models.quantizer.plan import Shard

_NAMES = {torch_dtype(short): names.safetensors for short, names in DTYPES.items()}
_NAMES |= {torch.int8: "I8", torch.int32: "I32", torch.int64: "I64"}
_ALIGNMENT = 8  # of the first tensor, as the format's own writer has it


class ShardFile:
    """The file of a shard in a folder."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path = folder / shard.name
        self._places: dict[str, tuple[int, int]] = {}  # name -> first byte, number of bytes
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in shard.tensors:
            begin, end = end, end + tensor.nbytes
            self._places[tensor.name] = begin, end - begin
            entry = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
            header[tensor.name] = entry
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
        self._header = len(text).to_bytes(LENGTH_BYTES, "little") + text
        self.size = len(self._header) + end

    def is_written(self) -> bool:
        """Whether the file is there, with just these tensors and as long as they make it."""
        try:
            with self.path.open("rb") as stream:
                return os.fstat(stream.fileno()).st_size == self.size and stream.read(len(self._header)) == self._header
        except OSError:
            return False

    @contextmanager
    def writing(self) -> Iterator[ShardWriter]:
        """A writer of its tensors, all of which are written within the block.

        Raises AtbError, which names the file, if it cannot be written; then, and where the block ends by an exception,
        no file is left.
        """
        with written_whole(self.path) as temporary:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, self._header, 0)
                writer = ShardWriter(fd, len(self._header), self._places)
                yield writer
                assert writer.written == self.size - len(self._header), "a tensor of the shard was not written"
                os.fsync(fd)  # a name is given to nothing that a power failure could take back
            finally:
                os.close(fd)


class ShardWriter:
    """Writes tensors to their places in an open file. written: bytes so far."""

    def __init__(self, fd: int, start: int, places: dict[str, tuple[int, int]]) -> None:
        self._fd, self._start, self._places = fd, start, places
        self.written = 0

    def put(self, name: str, values: Tensor, first: int = 0) -> None:
        """Write `values` as the tensor's elements from `first` on."""
        begin, size = self._places[name]
        data = _bytes_of(values)
        offset = first * values.element_size()
        assert offset + len(data) <= size, f"{name}: too many values"
        _write(self._fd, data, self._start + begin + offset)
        self.written += len(data)


def _bytes_of(values: Tensor) -> memoryview:
    """Its bytes; no copy where it is contiguous."""
    flat = values.detach().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().view(np.uint8).data if flat.numel() else memoryview(b"")


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of the data; a write may take less than it is given."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, offset)
        rest, offset = rest[count:], offset + count
