"""The groups of a compressed-tensors checkpoint: how the linear maps of each are stored, checked field by field.

Fields and their meaning are those of the compressed-tensors library, release 0.20.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from atb_models.errors import ConfigError
from atb_models.layers.storage import Activations, Storage
from atb_models.models.config_fields import Fields
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.rules import as_bits, group_size
from atb_models.wording import shown

AGAIN: Final = "llm-compressor can quantise the float weights again"
# Format -> whether integers are packed in words.
FORMATS: Final = {"int-quantized": False, "naive-quantized": False, "float-quantized": False, "pack-quantized": True}
# Formats of the floats that a checkpoint was made of.
_DENSE: Final = ("dense", "fakequant")
_STRATEGIES: Final = ("tensor", "channel", "group", "block")
_MOST_BLOCK: Final = 1 << 16


@dataclass(frozen=True)
class Group:
    """One of config_groups. block: outputs and inputs that share a scale; None: all there are. ordered: inputs may be
    in any group (actorder "group"). zero_input: static activations have a zero point. float_inputs: other engines
    would round activations to 8-bit floats."""

    targets: tuple[str, ...]
    kind: Literal["int", "float"]
    bits: Literal[4, 8]
    packed: bool
    block: tuple[int | None, int | None]
    symmetric: bool
    ordered: bool = False
    activations: Activations = "float"
    zero_input: bool = False
    float_inputs: bool = False

    @property
    def storage(self) -> Storage | None:
        """In the internal form; None: floats, for which the weight is dequantised."""
        if self.kind == "float" or self.block[0] not in (None, 1):
            return None
        return Storage(self.bits, self.block[1], offset=not self.symmetric, activations=self.activations)

    @property
    def method(self) -> str:
        """MindIE's word for it."""
        if self.kind == "float":
            return "float8"
        return {"float": f"w{self.bits}a16", "token": "w8a8_dynamic", "static": "w8a8"}[self.activations]

    @property
    def described(self) -> str:
        """For messages."""
        rows, columns = self.block
        if rows not in (None, 1):
            width = f" in blocks of {rows} x {columns}"
        else:
            width = f" in groups of {columns}" if columns else ""
        inputs = "" if self.activations == "float" else f" with int8 activations by {self.activations}"
        return f"{'float8' if self.kind == 'float' else f'{self.bits} bits'}{width}{inputs}"

    def block_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Of a weight of that shape."""
        return self.block[0] or shape[0], self.block[1] or shape[1]


def read_groups(declared: Declaration) -> dict[str, Group]:
    """By name. Raises ConfigError for what is not read, naming the field and what makes a readable checkpoint."""
    groups = declared.fields.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise declared.fail("config_groups", "but must be an object of groups")
    return {name: _group(declared, name, value) for name, value in groups.items()}


def check_the_rest(declared: Declaration) -> None:
    """Refuse what changes the weights in a way that is not read."""
    sparsity = declared.fields.get("sparsity_config") or {}
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise declared.fail("sparsity_config", f"but sparse weights are not read; {AGAIN} without sparsity")
    for field in ("transform_config", "moe_sparsity_config"):
        if declared.fields.get(field):
            raise declared.fail(field, f"which is not computed here; {AGAIN} without it")


def _group(declared: Declaration, name: str, value: Any) -> Group:
    place = Path(f"{declared.place}: config_groups {shown(name)}")
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is {shown(value)}, but must be an object with targets and weights")
    fields = Fields(value, place)
    targets = fields.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise fields.fail("targets", "but must be a list of names")
    if fields.get("output_activations") is not None:
        raise fields.fail("output_activations", f"but outputs are not quantised here; {AGAIN} without")
    weights = _inner(fields, "weights")
    if weights is None:
        raise fields.fail("weights", f"but activations without weights are not quantised here; {AGAIN} without")
    group = _weights(weights, tuple(targets), _packed(declared, fields))
    inputs = _inner(fields, "input_activations")
    return group if inputs is None else _with_inputs(group, weights, inputs)


def _inner(fields: Fields, name: str) -> Fields | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fields.fail(name, "but must be null or an object")
    return Fields(value, Path(f"{fields.file}: {name}"))


def _packed(declared: Declaration, fields: Fields) -> bool:
    """By the group's own format, or else that of all."""
    own = fields if fields.get("format") is not None else Fields(declared.fields, Path(declared.place))
    name = own.get("format")
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    floats = isinstance(name, str) and name in _DENSE
    hint = "save it with save_compressed=True" if floats else f"{AGAIN} in one of them"
    raise own.fail("format", f"but only {', '.join(FORMATS)} are read; {hint}")


def _weights(fields: Fields, targets: tuple[str, ...], packed: bool) -> Group:
    kind = fields.get("type", "int")
    bits = fields.integer("num_bits", 8, maximum=64)
    if kind not in ("int", "float") or (kind == "float" and (bits != 8 or packed)):
        raise fields.fail("type" if bits == 8 else "num_bits", f"but of floats only those of 8 bits are read; {AGAIN}")
    if bits not in (4, 8):
        raise fields.fail("num_bits", f"but only 4 and 8 are read; {AGAIN} with 4 or 8 bits")
    if fields.get("dynamic") not in (None, False):
        raise fields.fail("dynamic", "but weights have scales of their own")
    symmetric = fields.flag("symmetric", True)
    return Group(targets, kind, as_bits(bits), packed, _block(fields), symmetric, ordered=_ordered(fields))


def _block(fields: Fields) -> tuple[int | None, int | None]:
    """By strategy; without one, by the size of groups."""
    group = None if fields.get("group_size") is None else group_size(fields, "group_size")
    implied = "tensor" if fields.get("group_size") is None else "channel" if group is None else "group"
    strategy = fields.get("strategy", implied)
    if strategy not in _STRATEGIES:
        raise fields.fail("strategy", f"but weights are read by {', '.join(_STRATEGIES)} only; {AGAIN}")
    if strategy == "group" and group is None:
        raise fields.fail("group_size", "but groups need a size of at least 1")
    if strategy != "block":
        return {"tensor": (None, None), "channel": (1, None), "group": (1, group)}[strategy]
    sizes = fields.get("block_structure")
    sizes = sizes.split("x") if isinstance(sizes, str) else sizes
    numbers = [_positive(size) for size in sizes] if isinstance(sizes, list) else []
    if len(numbers) != 2 or None in numbers:
        raise fields.fail("block_structure", "but must be two integers, the outputs and the inputs of a block")
    return numbers[0], numbers[1]


def _positive(value: object) -> int | None:
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9 else value
    return number if type(number) is int and 1 <= number <= _MOST_BLOCK else None


def _ordered(fields: Fields) -> bool:
    """Whether inputs may be in any group; "weight" and "static" order them only while they are quantised."""
    order = fields.get("actorder")
    if order in (None, False, "weight", "static"):
        return False
    if order in (True, "group", "dynamic"):
        return True
    raise fields.fail("actorder", "but only weight, static, group and dynamic are read")


def _with_inputs(group: Group, weights: Fields, inputs: Fields) -> Group:
    """With the activations that the group asks for. Those of floats stay floats here."""
    if inputs.get("type", "int") == "float":
        return replace(group, float_inputs=True)
    if inputs.get("type", "int") != "int" or inputs.integer("num_bits", 8, maximum=64) != 8:
        raise inputs.fail("num_bits", f"but activations of integers have 8 bits here; {AGAIN} as W8A8 or W4A16")
    if group.kind != "int" or group.bits != 8 or not group.symmetric or group.block not in ((1, None), (None, None)):
        said = "but int8 activations need symmetric int8 weights with a scale for each output"
        raise inputs.fail("num_bits", f"{said}, unlike {weights.file}; {AGAIN} as W8A8 or W4A16")
    symmetric = inputs.flag("symmetric", True)
    dynamic, strategy = inputs.get("dynamic", False), inputs.get("strategy", "tensor")
    if dynamic is True and strategy == "token":
        if not symmetric:
            raise inputs.fail("symmetric", f"but activations that are quantised as they come are so; {AGAIN}")
        return replace(group, activations="token")
    if dynamic is False and strategy == "tensor":
        return replace(group, activations="static", zero_input=not symmetric)
    raise inputs.fail("strategy", f"but only dynamic ones by token and static ones by tensor are read; {AGAIN}")
