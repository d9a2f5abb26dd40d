"""A quantised checkpoint as its scheme presents it: whole tensors, slices, and the floats that they stand for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from atb_models.models.quantized.read import read_scheme
from atb_models.models.quantized.scheme import Scheme
from atb_models.models.weights.checkpoint import open_checkpoint
from atb_models.models.weights.source import WeightSource


def scheme_of(folder: Path) -> Scheme:
    scheme = read_scheme(folder, json.loads((folder / "config.json").read_text()))
    assert scheme is not None
    return scheme


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Scheme, WeightSource]]:
    """The scheme, and the source of its weights."""
    scheme = scheme_of(folder)
    source = scheme.open(open_checkpoint(folder, quantized=True))
    try:
        yield scheme, source
    finally:
        source.close()


def read(source: WeightSource, name: str, dtype: torch.dtype, dim: int | None = None, *cut: int) -> Tensor:
    """The tensor, or [start, stop) of it along `dim`, in the type that the internal form has for it."""
    shape, (start, stop) = list(source.shape(name)), cut or (0, 0)
    if dim is not None:
        shape[dim] = stop - start
    target = torch.full(shape, 77, dtype=dtype)
    assert source.read_into(name, dim, start, stop, target) == 0
    return target


def floats_of(scheme: Scheme, source: WeightSource, name: str) -> Tensor:
    """The tensor as float32; of integers (q - offset) * scale, each step rounded once."""
    storage = scheme.storage(name)
    if storage is None:
        return read(source, name, torch.float32)
    stem, numbers = name.removesuffix(".weight"), read(source, name, torch.int8).float()
    width = storage.group or numbers.shape[1]

    def spread(part: str) -> Tensor:
        values = read(source, f"{stem}.{part}", torch.float32).view(len(numbers), -1)
        return values.repeat_interleave(width, dim=1)[:, : numbers.shape[1]]

    if storage.offset:
        numbers -= spread("weight_offset")
    return numbers * spread("weight_scale")


def cuts(size: int) -> Iterator[tuple[int, int]]:
    """[start, stop): the parts of 1, 2, 4, 8 and 3 ranks, a number alone, and none."""
    for ranks in (1, 2, 4, 8, 3):
        part = -(-size // ranks)
        yield from ((first, min(first + part, size)) for first in range(0, size, part))
    yield from ((size - 1, size), (1, 2), (size // 2, size // 2))
