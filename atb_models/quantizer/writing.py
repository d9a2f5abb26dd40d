"""Writes the files of the new checkpoint, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from atb_models.files import written_whole
from atb_models.models.weights.source import WeightSource
from atb_models.quantizer.contents import Contents
from atb_models.quantizer.formats.form import Form, Stored
from atb_models.quantizer.plan import Shard, TensorGroup
from atb_models.quantizer.shard_file import ShardFile, ShardWriter

_BAND = 4 << 20  # bytes of a float tensor that are copied at a time; whole rows, and at least one


def write_shard(file: ShardFile, shard: Shard, contents: Contents, form: Form, told: Callable[[int], object]) -> None:
    """Write one file. told: called after each group with its bytes.

    Raises CheckpointError for a tensor that cannot be read, or quantised, AtbError where the file cannot be written.
    """
    with file.writing() as writer:
        for group in shard.groups:
            if group.linear is None:
                _copy(group, contents.source, writer)
            else:
                for name, values in form.packed(group.linear, contents.parts(group.linear)).items():
                    writer.put(name, values)
            told(group.nbytes)


def write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy(group: TensorGroup, source: WeightSource, writer: ShardWriter) -> None:
    """A tensor as it is, in bands."""
    (tensor,) = group.tensors
    if not tensor.shape:
        whole = torch.empty((), dtype=tensor.dtype)
        source.read_into(tensor.name, None, 0, 0, whole)
        writer.put(tensor.name, whole)
        return
    row = prod(tensor.shape[1:])
    rows = max(1, _BAND // max(1, row * tensor.dtype.itemsize))
    band = torch.empty(min(rows, tensor.shape[0]), *tensor.shape[1:], dtype=tensor.dtype)
    for first in range(0, tensor.shape[0], rows):
        stop = min(first + rows, tensor.shape[0])
        source.read_into(tensor.name, 0, first, stop, band[: stop - first])
        writer.put(tensor.name, band[: stop - first], first * row)


def tensors_of(shards: Sequence[Shard]) -> list[Stored]:
    """Every tensor of the new checkpoint."""
    return [tensor for shard in shards for group in shard.groups for tensor in group.tensors]
