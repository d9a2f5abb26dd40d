"""How the weights of an AWQ checkpoint are stored. Importing it and reading a declaration need no torch.

`modules_to_not_convert` is no sure rule. AutoAWQ leaves out what has an entry anywhere in its name, so that "mlp.gate"
also leaves out a dense layer's mlp.gate_proj; Transformers matches from the start or the end of names, vLLM anywhere in
them but looks at the tensors too. So the files tell which linear maps are packed. Only where the folder holds none, a
map is left out if an entry is whole words of its name between dots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atb_models.layers.storage import Storage
from atb_models.models.config_fields import Fields
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.packed.modules import PackedModules, find_packed, open_packed
from atb_models.models.quantized.rules import group_size, may_be_integers, module_of, texts_of, warn_of_unknown

if TYPE_CHECKING:
    from atb_models.models.quantized.awq.weight import AwqWeight
    from atb_models.models.quantized.packed.source import UnpackingWeights
    from atb_models.models.weights.checkpoint import Checkpoint

# Those that are asked for, and those that choose what other engines compute with.
FIELDS: Final = frozenset(
    """quant_method bits w_bit group_size q_group_size zero_point version modules_to_not_convert do_fuse modules_to_fuse
    fuse_max_seq_len exllama_config backend""".split()
)
AGAIN: Final = "AutoAWQ makes a checkpoint of 4 bits and version gemm of the float weights"


def read(declared: Declaration) -> Awq:
    """The scheme of a folder that declares AWQ. Raises ConfigError for a value that is not read."""
    fields = Fields(declared.fields, Path(declared.place))
    version = fields.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise fields.fail("version", f"but only 'gemm' is read; {AGAIN}")
    bits = _either(fields, "bits", "w_bit")
    if fields.integer(bits, maximum=64) != 4:
        raise fields.fail(bits, f"but only 4 is read; {AGAIN}")
    group = group_size(fields, _either(fields, "group_size", "q_group_size"))
    return Awq(declared, group, not fields.flag("zero_point", True), _left_out(declared))


@dataclass(frozen=True)
class Awq:
    """group: inputs that share a scale; None: a whole row. symmetric: all zero points are 8. left_out: the entries of
    modules_to_not_convert."""

    declared: Declaration
    group: int | None
    symmetric: bool
    left_out: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"awq, 4 bits in {'rows' if self.group is None else f'groups of {self.group}'}"

    @property
    def method(self) -> str:
        return "w4a16"

    def storage(self, weight: str) -> Storage | None:
        packed = may_be_integers(weight) and self._is_packed(module_of(weight))
        return Storage(4, self.group, offset=not self.symmetric) if packed else None

    def has_bias(self, weight: str) -> bool:
        return self._packed is not None and module_of(weight) in self._packed.biased

    def open(self, checkpoint: Checkpoint) -> UnpackingWeights:
        """Raises CheckpointError for a tensor that is missing or does not fit."""
        from atb_models.models.quantized.awq.weight import AwqWeight

        def weight_of(present: set[str], module: str) -> AwqWeight:
            return AwqWeight(checkpoint, present, module, self.group, symmetric=self.symmetric)

        warn_of_unknown(self.declared, FIELDS)
        return open_packed(checkpoint, self, self.declared.place, weight_of)

    @cached_property
    def _packed(self) -> PackedModules | None:
        """What the files hold; None: there are none. Read when it is first asked for."""
        return find_packed(self.declared.folder)

    def _is_packed(self, module: str) -> bool:
        if self._packed is not None:
            return module in self._packed.every
        return not any(f".{entry.strip('.')}." in f".{module}." for entry in self.left_out)


def _left_out(declared: Declaration) -> tuple[str, ...]:
    """The entries of modules_to_not_convert, of which a single one may stand without its list."""
    value = declared.fields.get("modules_to_not_convert")
    return (value,) if isinstance(value, str) else texts_of(declared, "modules_to_not_convert")


def _either(fields: Fields, new: str, old: str) -> str:
    """The field that is there: AutoAWQ writes the new name into config.json, the old one into quant_config.json."""
    return old if fields.get(new) is None and fields.get(old) is not None else new
