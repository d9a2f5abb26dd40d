"""What is written, before anything is: every tensor of the new checkpoint, and the file that holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from atb_models.quantizer.formats.form import QuantizedLinear, Stored


@dataclass(frozen=True)
class TensorGroup:
    """What is made in one go and lies in one file: the tensors of a quantised linear map, or one that stays a float."""

    tensors: tuple[Stored, ...]
    linear: QuantizedLinear | None = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Shard:
    """One file of tensors."""

    name: str
    groups: tuple[TensorGroup, ...]

    @cached_property
    def tensors(self) -> tuple[Stored, ...]:
        """In the order of their bytes: by falling size of an element, so that every tensor is aligned."""
        every = [tensor for group in self.groups for tensor in group.tensors]
        return tuple(sorted(every, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name)))

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)


def shards_of(
    groups: Sequence[TensorGroup], most_bytes: int, file_name: Callable[[int, int], str]
) -> tuple[Shard, ...]:
    """The groups in their order, in files of at most so many bytes of tensors, or of one group that has more."""
    files: list[list[TensorGroup]] = []
    size = 0
    for group in groups:
        if not files or size + group.nbytes > most_bytes:
            files.append([])
            size = 0
        files[-1].append(group)
        size += group.nbytes
    return tuple(Shard(file_name(number, len(files)), tuple(held)) for number, held in enumerate(files, 1))


def index_of(shards: Iterable[Shard]) -> dict[str, Any]:
    """The content of model.safetensors.index.json."""
    shards = tuple(shards)
    weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    return {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }
