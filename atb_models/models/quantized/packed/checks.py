"""Checks of the tensors that a weight is packed in, before and while they are read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.models.weights.checkpoint import Checkpoint
from atb_models.wording import named, shown

FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)
WORDS: Final = (torch.int32,)


def wrong(checkpoint: Checkpoint, name: str, why: str) -> CheckpointError:
    """The error for a tensor: its file, its name, and what is wrong with it."""
    return CheckpointError(f"{checkpoint.where(name)}: tensor {named([name])} {why}")


def check_there(checkpoint: Checkpoint, present: Collection[str], name: str, other: str) -> None:
    """Raise CheckpointError unless the tensor is among those `present`. other: the one that cannot do without it."""
    if name not in present:
        raise CheckpointError(
            f"{checkpoint.where(other)} has no tensor {named([name])}, which belongs to {named([other])}"
        )


def check_dtype(checkpoint: Checkpoint, name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise CheckpointError unless the tensor is of one of the types."""
    if (dtype := checkpoint.dtype(name)) not in dtypes:
        raise wrong(checkpoint, name, f"is {dtype}, but must be {' or '.join(map(str, dtypes))}")


def check_shape(checkpoint: Checkpoint, name: str, wanted: tuple[int, ...], because: str) -> None:
    """Raise CheckpointError unless the tensor has that shape. because: what makes it so."""
    if (shape := checkpoint.shape(name)) != wanted:
        raise wrong(checkpoint, name, f"has shape {shown(shape)}, but {because} makes it {shown(wanted)}")


def matrix_shape(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    """The shape of a tensor; raises CheckpointError unless it has two dimensions of at least 1."""
    shape = checkpoint.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise wrong(checkpoint, name, f"has shape {shown(shape)}, but must have two dimensions of at least 1")
    return shape


def check_order(checkpoint: Checkpoint, name: str, order: Tensor, groups: int) -> None:
    """Raise CheckpointError unless the tensor's numbers, int64, are of the groups that there are."""
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < groups:
        raise wrong(checkpoint, name, f"names groups outside of the {groups} that there are")


def read_block(checkpoint: Checkpoint, name: str, rows: range, columns: range) -> Tensor:
    """Rows and columns of a tensor of two dimensions, as the file has them."""
    if len(rows) == checkpoint.shape(name)[0]:
        return checkpoint.read(name, 1, columns.start, columns.stop)
    return checkpoint.read(name, 0, rows.start, rows.stop)[:, columns.start : columns.stop]
