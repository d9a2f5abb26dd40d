"""Which linear maps of a checkpoint are quantised, and how each is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from atb_models.errors import ConfigError
from atb_models.layers.storage import METHODS, Storage
from atb_models.models.quantized.scheme import Scheme
from atb_models.models.weights.names import CheckpointTensor
from atb_models.wording import named

STATIC = "w8a8"
CHOICES = ("w8a8_dynamic", "w8a16", "w4a16", STATIC)
GROUPS = (32, 64, 128, 256)
WHOLE_ROW = -1  # in place of a group size


@dataclass(frozen=True)
class Recipe:
    """What changes the files: see the flags.

    group_size: None where the method has none, or its own is meant. floats: patterns of the paths of linear maps.
    """

    method: str
    format: str
    group_size: int | None
    floats: tuple[str, ...]
    max_shard_bytes: int

    def flags(self) -> dict[str, Any]:
        """The values by the flags that gave them."""
        return {
            "--to": self.method,
            "--format": self.format,
            "--group_size": self.group_size,
            "--float": list(self.floats),
            "--max_shard_size": self.max_shard_bytes,
        }


def kept_storages(
    recipe: Recipe, scheme: Scheme, tensors: Sequence[CheckpointTensor], inputs: Mapping[str, int]
) -> dict[str, Storage]:
    """The storage of each weight of a checkpoint that is quantised already, where it only changes its format.

    tensors: all of the model. inputs: of each weight of a linear map. Raises ConfigError for another method, for flags
    that could only change integers, and for biases that no configuration tells of, which other formats have no place
    for.
    """
    held = {one.name: storage for one in tensors if (storage := scheme.storage(one.name)) is not None}
    stored = _one_group_size(held, inputs)
    groups = {storage.group or WHOLE_ROW for storage in stored.values()}
    if recipe.method != scheme.method:
        raise ConfigError(
            f"the checkpoint is quantised already, as {scheme.name}: --to {scheme.method} writes it in another format,"
            f" but --to {recipe.method} needs the checkpoint of floats that it was made of"
        )
    if recipe.floats or recipe.group_size not in (None, *groups):
        flag = "--float" if recipe.floats else f"--group_size {recipe.group_size}"
        raise ConfigError(f"{flag} is for a checkpoint of floats, but this one is quantised already, as {scheme.name}")
    told = {one.name for one in tensors}
    for name in told:
        if scheme.has_bias(name) and f"{name.removesuffix('.weight')}.bias" not in told:
            raise ConfigError(f"{name} has a bias that came with quantisation, which other formats have no place for")
    return stored


def storages(recipe: Recipe, tensors: Sequence[CheckpointTensor]) -> dict[str, Storage]:
    """The storage of each weight that is quantised, among `tensors`, the weights of linear maps within layers.

    Attention has
    static activations in w8a8, everything else dynamic ones, as ModelSlim's recipes for mixtures of experts have it:
    each expert sees few of the calibration's tokens. Raises ConfigError for a pattern that fits nothing or that parts
    what engines keep in one matrix, and where nothing is left.
    """
    kept = _kept(tensors, recipe.floats)
    chosen = {one.name: _storage(recipe, one) for one in tensors if one.name not in kept}
    if not chosen:
        raise ConfigError(f"--float {' '.join(recipe.floats)} leaves no linear map to quantise")
    return chosen


def _one_group_size(stored: Mapping[str, Storage], inputs: Mapping[str, int]) -> dict[str, Storage]:
    """The same, with the group size of the others for a weight that is one group: its storage does not tell."""
    sizes = {storage.group for storage in stored.values() if storage.group is not None}
    if len(sizes) != 1:
        return dict(stored)
    (size,) = sizes
    return {
        name: replace(storage, group=size) if storage.group is None and inputs[name] <= size else storage
        for name, storage in stored.items()
    }


def _storage(recipe: Recipe, tensor: CheckpointTensor) -> Storage:
    if recipe.method == STATIC:
        return Storage(8, activations="static" if ".attn." in tensor.parameter else "token")
    storage = METHODS[recipe.method]
    if recipe.group_size is None:
        return storage
    return replace(storage, group=None if recipe.group_size == WHOLE_ROW else recipe.group_size)


def _kept(tensors: Sequence[CheckpointTensor], floats: Sequence[str]) -> set[str]:
    """The weights that the patterns keep as floats."""
    paths = {one.name: one.name.removesuffix(".weight") for one in tensors}
    for pattern in floats:
        if not any(fnmatchcase(path, pattern) for path in paths.values()):
            example = next(iter(paths.values()))
            raise ConfigError(f"--float {pattern} fits no linear map within a layer, such as {example}")
    kept = {name for name, path in paths.items() if any(fnmatchcase(path, pattern) for pattern in floats)}
    together: defaultdict[str, list[str]] = defaultdict(list)
    for one in tensors:
        together[one.parameter].append(one.name)
    for names in together.values():
        if parted := kept.intersection(names) and sorted(set(names) - kept):
            raise ConfigError(
                f"--float leaves {named(sorted(kept.intersection(names))[:1])} as it is, but not {named(parted, 3)}:"
                " engines keep them in one matrix, so they need one type; make the pattern fit all of them"
            )
    return kept


def uneven(chosen: Mapping[str, Storage], inputs: Mapping[str, int]) -> list[str]:
    """The weights whose last group is smaller than the others. inputs: of each weight."""
    return [name for name, storage in chosen.items() if storage.group is not None and inputs[name] % storage.group]


def even_group(inputs: Iterable[int]) -> int | None:
    """The largest group size that divides all of these numbers of inputs."""
    numbers = set(inputs)
    return max((group for group in GROUPS if not any(number % group for number in numbers)), default=None)
