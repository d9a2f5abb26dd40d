"""Copying one rank's slice of a tensor that can be read in flat runs of elements, with little memory."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

BAND_BYTES = 16 << 20

# (first element of the whole tensor, contiguous 1-D CPU tensor to fill) -> `has_large` of what was read
ReadRun = Callable[[int, Tensor], bool]


def slice_shape(shape: tuple[int, ...], dim: int | None, start: int, stop: int) -> tuple[int, ...]:
    """The shape of [start, stop) along `dim` of a tensor of `shape`; dim None: all of it."""
    return shape if dim is None else (*shape[:dim], stop - start, *shape[dim + 1 :])


def copy_slice(
    read_run: ReadRun,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    dim: int | None,
    start: int,
    stop: int,
    target: Tensor,
) -> bool:
    """Fill `target` (any device, dtype, strides) with [start, stop) along `dim` of a tensor of `shape` and `dtype`.

    Returns whether a number that was read is large, infinite or no number, see finite.py.

    A run of elements that lies in `target` as it lies in the source is read in place. All else goes through one band
    of rows of at most 16 MiB (or one row, if that is longer): rows are read whole and the wanted columns kept.
    """
    wanted = slice_shape(shape, dim, start, stop)
    assert tuple(target.shape) == wanted, f"a target of shape {tuple(target.shape)} for a slice of shape {wanted}"
    dim, start, stop = (0, 0, shape[0] if shape else 1) if dim is None else (dim, start, stop)
    if target.numel() == 0:
        return False
    row = prod(shape[1:])
    first = start * row if dim == 0 else 0
    if dim == 0 and target.is_contiguous() and target.dtype == dtype and target.device.type == "cpu":
        return read_run(first, target.detach().view(-1))
    rows = target.view(1) if not shape else target  # a scalar is one row of one element
    step = max(1, BAND_BYTES // (row * dtype.itemsize))
    band = torch.empty(min(step, len(rows)) * row, dtype=dtype)
    large = False
    for begin in range(0, len(rows), step):
        count = min(step, len(rows) - begin)
        flat = band[: count * row]
        large = read_run(first + begin * row, flat) or large
        block = flat.view(count, *shape[1:])
        rows[begin : begin + count].copy_(block if dim == 0 else block.narrow(dim, start, stop - start))
    return large
