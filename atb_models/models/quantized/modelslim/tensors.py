"""The tensors of a checkpoint, held against what a description makes them be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atb_models.errors import CheckpointError
from atb_models.models.quantized.modelslim.description import Description
from atb_models.wording import named, shown

if TYPE_CHECKING:
    from atb_models.models.weights.checkpoint import Checkpoint


class Tensors:
    """Names, shapes and data types. The checks raise CheckpointError naming the file and the tensor."""

    def __init__(self, checkpoint: Checkpoint, description: Description) -> None:
        self._checkpoint = checkpoint
        self.description = description
        self.names = checkpoint.names()
        self.where = checkpoint.where

    def is_float(self, name: str) -> bool:
        """Whether a tensor that is there holds floats of 16 or 32 bits."""
        dtype = self._checkpoint.dtype(name)
        return dtype.is_floating_point and dtype.itemsize > 1

    def matrix(self, weight: str) -> tuple[int, int]:
        """Rows and columns of the integers of a weight, as they are stored."""
        shape = self._checkpoint.shape(weight)
        if len(shape) != 2:
            raise CheckpointError(
                f"{self.where(weight)}: tensor {weight} has shape {shown(shape)}, but a weight is a matrix"
            )
        self.check(weight, [shape], "int8")
        return shape[0], shape[1]

    def scales(self, name: str) -> tuple[int, int]:
        """Outputs, and scales of each."""
        shape = self._checkpoint.shape(name) if name in self.names else (1,)
        if len(shape) not in (1, 2):
            raise CheckpointError(
                f"{self.where(name)}: tensor {name} has shape {shown(shape)}, but scales are a column or a matrix"
            )
        self.check(name, [shape], "float")
        return shape[0], shape[1] if len(shape) == 2 else 1

    def check(self, name: str, shapes: Sequence[tuple[int, ...]], *dtypes: str) -> None:
        """It is there, has one of the shapes, and one of the data types; "float": of 16 or 32 bits."""
        weight = f"{name.rpartition('.')[0]}.weight"
        needs = f"for type {self.description.types.get(weight)} of {weight} in {self.description.path.name}"
        if name not in self.names:
            raise CheckpointError(f"{self.where(name)} has no tensor {named([name])}, which must be there {needs}")
        shape, dtype = self._checkpoint.shape(name), str(self._checkpoint.dtype(name)).removeprefix("torch.")
        if shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise CheckpointError(
                f"{self.where(name)}: tensor {named([name])} has shape {shown(shape)}, but must have {wanted} {needs}"
            )
        if dtype not in dtypes and not ("float" in dtypes and self.is_float(name)):
            wanted = " or ".join(dtypes)
            raise CheckpointError(
                f"{self.where(name)}: tensor {named([name])} is {dtype}, but must be {wanted} {needs}"
            )
