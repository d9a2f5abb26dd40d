"""How each quantised linear map of ModelSlim's weights is stored: by its type, and by the shapes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from atb_models.errors import CheckpointError, ConfigError
from atb_models.layers.storage import Storage
from atb_models.models.quantized.modelslim.description import GROUPS, Description
from atb_models.models.quantized.modelslim.tensors import Tensors
from atb_models.models.quantized.modelslim.types import DYNAMIC, FLOAT, MIX, STATIC, STORAGES
from atb_models.wording import named, shown

if TYPE_CHECKING:
    from atb_models.models.weights.checkpoint import Checkpoint

# How numbers lie in the bytes of a weight: one in each; or two, of neighbouring outputs or inputs, the even one low.
Packing = Literal["none", "outputs", "inputs"]


@dataclass(frozen=True)
class StoredLinear:
    """One linear map whose weight is integers. stem: of the names of its tensors. shape: [O, I] of the integers."""

    stem: str
    storage: Storage
    shape: tuple[int, int]
    packing: Packing = "none"

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Of the scales, and of the offsets: [O], or [O, groups]."""
        outputs, inputs = self.shape
        return (outputs,) if self.storage.group is None else (outputs, -(-inputs // self.storage.group))


def assumed_storage(kind: str, description: Description) -> Storage:
    """What the description alone tells of a linear map of that type."""
    storage = STORAGES[kind]
    return replace(storage, group=description.group) if storage.activations == "float" else storage


def find_linears(checkpoint: Checkpoint, description: Description, method: str) -> dict[str, StoredLinear]:
    """By the names of their weights. A weight of floats is left as it is, whatever its type.

    Raises CheckpointError naming the file and the tensor that is missing, or whose shape or data type does not fit,
    ConfigError for what is not computed here.
    """
    tensors = Tensors(checkpoint, description)
    typed = [name for name, kind in description.types.items() if name.endswith(".weight") and kind in STORAGES]
    _check_presence(tensors, description)
    weights = [name for name in typed if not tensors.is_float(name)]
    if typed and not weights:
        raise CheckpointError(
            f"{description.path} describes {len(typed)} quantised weights, but in {checkpoint.listing} all of them are"
            f" floats, as {named(typed[:1])} is; fetch the quantised weights, or, to run the floats, take away the"
            " description, and quantize in config.json"
        )
    linears = {name: _linear(tensors, name, _kind(name, description, tensors, method)) for name in weights}
    return _with_offsets(checkpoint, linears)


def _check_presence(tensors: Tensors, description: Description) -> None:
    """Every tensor of the description is there, except those beside a weight that is floats, and a tied head."""
    is_tied = description.types.get("lm_head.weight") == FLOAT
    present = tensors.names | ({"lm_head.weight"} if is_tied else set())
    missing = [name for name in description.types if name not in present]
    for name in missing:
        weight = f"{name.rpartition('.')[0]}.weight"
        needless = weight in tensors.names and tensors.is_float(weight) and not name.endswith((".weight", ".bias"))
        if not needless:
            raise CheckpointError(
                f"{tensors.where(name)} has no tensor {named([name])}, which {description.path} describes"
                f" ({len(missing)} of {len(description.types)} tensors are missing); fetch the weights again"
            )


def _kind(weight: str, description: Description, tensors: Tensors, method: str) -> str:
    """The type; told by the tensors where a description of W8A8 weights serves for a dynamic or a mixed model."""
    kind, stem = description.types[weight], weight.removesuffix(".weight")
    if kind == STATIC and f"{stem}.weight_scale" in tensors.names:
        if method == "w8a8_pdmix":
            return MIX
        if method == "w8a8_dynamic" and f"{stem}.deq_scale" not in tensors.names:
            return DYNAMIC
    return kind


def _linear(tensors: Tensors, weight: str, kind: str) -> StoredLinear:
    stem, storage = weight.removesuffix(".weight"), STORAGES[kind]
    rows, columns = tensors.matrix(weight)
    if storage.activations == "static":
        tensors.check(f"{stem}.deq_scale", [(rows,), (rows, 1)], "float", "int64")
        tensors.check(f"{stem}.quant_bias", [(rows,), (rows, 1)], "int32")
        tensors.check(f"{stem}.input_scale", [(1,), ()], "float")
        tensors.check(f"{stem}.input_offset", [(1,), ()], "float", "int8")
        return StoredLinear(stem, storage, (rows, columns))
    declared = tensors.description.group
    outputs, groups = tensors.scales(f"{stem}.weight_scale")
    packing: Packing = "none"
    if storage.bits == 4:
        packing = _packing(rows, columns, outputs, groups, tensors.description)
    shape = rows * (1 + (packing == "outputs")), columns * (1 + (packing == "inputs"))
    group = _group(shape[1], groups, declared)
    if outputs != shape[0] or (groups > 1 and group is None):
        raise CheckpointError(
            f"{tensors.where(f'{stem}.weight_scale')}: tensor {stem}.weight_scale of shape {shown((outputs, groups))}"
            f" does not fit {weight} of shape {shown((rows, columns))} with type {kind} and group_size {declared or 0}"
        )
    if group is not None and storage.activations == "token":
        raise ConfigError(
            f"{tensors.where(weight)}: tensor {weight} is {kind} with scales for groups of {group} inputs, but products"
            " with int8 activations have one scale for each output here; quantise it per channel, or as W8A16"
        )
    if (offset := f"{stem}.weight_offset") in tensors.names:
        tensors.check(offset, [(outputs, groups), *([(outputs,)] if groups == 1 else [])], "float", "int8")
    return StoredLinear(stem, replace(storage, group=group), shape, packing)


def _packing(rows: int, columns: int, outputs: int, groups: int, description: Description) -> Packing:
    """Scales of groups are saved with neighbouring outputs in a byte, scales of rows with neighbouring inputs."""
    if outputs == 2 * rows:
        return "outputs"
    if not description.packed:
        return "none"
    plain, paired = (_group(inputs, groups, description.group) for inputs in (columns, 2 * columns))
    return "none" if groups > 1 and plain is not None and paired is None else "inputs"


def _group(inputs: int, groups: int, declared: int | None) -> int | None:
    """Inputs that share a scale where a row has so many; None where all do, and where no size gives that number."""
    sizes = GROUPS if declared is None else (declared,)
    return next((size for size in sizes if groups > 1 and -(-inputs // size) == groups), None)


def _with_offsets(checkpoint: Checkpoint, linears: dict[str, StoredLinear]) -> dict[str, StoredLinear]:
    """Offsets are kept for all weights of one storage as soon as one of them has an offset that is not zero.

    The savers write offsets of zeros for symmetric weights, and nothing else tells the two apart. The weights of a
    merged map must be stored alike, so it is not decided for each.
    """
    names = checkpoint.names()
    asymmetric: set[Storage] = set()
    for linear in linears.values():
        offset = f"{linear.stem}.weight_offset"
        needed = linear.storage not in asymmetric and linear.storage.activations != "static" and offset in names
        if needed and bool(checkpoint.read(offset).any()):
            asymmetric.add(linear.storage)
    return {
        weight: replace(linear, storage=replace(linear.storage, offset=linear.storage in asymmetric))
        for weight, linear in linears.items()
    }
