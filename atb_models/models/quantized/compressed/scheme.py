"""How the weights of a compressed-tensors checkpoint are stored. Importing it needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from atb_models.layers.storage import Storage
from atb_models.models.quantized.compressed.matching import Matching
from atb_models.models.quantized.compressed.settings import Group, check_the_rest, read_groups
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.rules import WEIGHT, may_be_integers, module_of, tell_of_floats, warn_of_unknown
from atb_models.wording import counted

if TYPE_CHECKING:
    from atb_models.models.quantized.packed.source import UnpackingWeights
    from atb_models.models.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

# Those that are asked for, and those that tell how the weights were made.
FIELDS: Final = frozenset(
    """quant_method config_groups format ignore kv_cache_scheme sparsity_config quantization_status version
    global_compression_ratio compression_ratio moe_sparsity_config transform_config is_compressed""".split()
)
# Ends of the names of what shows that a linear map is stored in fewer bits.
_MARKS: Final = (".weight_packed", ".weight_scale")
# Scales of a quantised KV cache.
_CACHE: Final = tuple(f"{of}_{part}" for of in (".q", ".k", ".v", "_proj.output") for part in ("scale", "zero_point"))


def read(declared: Declaration) -> CompressedTensors:
    """The scheme of a folder that declares compressed-tensors. Raises ConfigError for a value that is not read."""
    groups = read_groups(declared)
    check_the_rest(declared)
    return CompressedTensors(declared, tuple(groups.values()), Matching(declared, groups))


class _Found(NamedTuple):
    """Of the files. scattered: linear maps with groups that are no runs of inputs. biased: those with a float bias."""

    scattered: frozenset[str]
    biased: frozenset[str]


@dataclass(frozen=True)
class CompressedTensors:
    """groups: how linear maps are stored, in all ways that there are."""

    declared: Declaration
    groups: tuple[Group, ...]
    matching: Matching

    @property
    def name(self) -> str:
        return f"compressed-tensors, {' and '.join(dict.fromkeys(group.described for group in self.groups))}"

    @property
    def method(self) -> str:
        words = {group.method for group in self.groups}
        return words.pop() if len(words) == 1 else "mixed"

    def storage(self, weight: str) -> Storage | None:
        module = module_of(weight)
        group = self.matching.group_of(module) if may_be_integers(weight) else None
        return None if group is None or self._is_scattered(module, group) else group.storage

    def has_bias(self, weight: str) -> bool:
        """Of static activations: a bias is not within the integers that are added to their sums, for its quotient by
        their scale is no integer."""
        storage = self.storage(weight)
        static = storage is not None and storage.activations == "static"
        return static and self._found is not None and module_of(weight) in self._found.biased

    def open(self, checkpoint: Checkpoint) -> UnpackingWeights:
        """Raises CheckpointError for a tensor that is missing or does not fit."""
        from atb_models.models.quantized.compressed.weight import PARTS, compressed_weight
        from atb_models.models.quantized.packed.checks import wrong
        from atb_models.models.quantized.packed.source import UnpackingWeights

        self._tell()
        present = checkpoint.names()
        modules = sorted({name.rpartition(".")[0] for name in present if name.endswith(_MARKS)})
        weights, scattered = {}, 0
        for module in modules:
            group = self.matching.group_of(module)
            if group is None:
                mark = next(name for end in _MARKS if (name := f"{module}{end}") in present)
                raise wrong(checkpoint, mark, "is unexpected: config_groups and ignore leave the weight as floats")
            own = self._is_scattered(module, group)
            scattered += own
            weights[f"{module}{WEIGHT}"] = compressed_weight(checkpoint, present, module, group, scattered=own)
        if scattered:
            logger.warning(
                "%s: actorder: the groups of %s are no runs of inputs; they become floats while they are read, and take"
                " the memory of floats",
                self.declared.place,
                counted(scattered, "linear map"),
            )
        tell_of_floats(self.declared.place, weights)
        self._check_complete(checkpoint, present, weights.keys())
        hidden = {f"{module}.{part}" for module in modules for part in PARTS}
        hidden |= {f"{module}{WEIGHT}" for module in modules} | {name for name in present if name.endswith(_CACHE)}
        return UnpackingWeights(checkpoint, weights, self.storage, hidden)

    def _tell(self) -> None:
        """What of the declaration has no effect."""
        place = self.declared.place
        warn_of_unknown(self.declared, FIELDS)
        if self.declared.fields.get("kv_cache_scheme") is not None:
            logger.warning("%s: kv_cache_scheme is not used: see --kv_dtype for how keys and values are kept", place)
        if any(group.kind == "float" for group in self.groups):
            logger.info("%s: weights of 8-bit floats become floats while they are read, and take their memory", place)
        if any(group.float_inputs for group in self.groups):
            logger.info("%s: activations that other engines round to 8-bit floats stay floats", place)

    def _check_complete(self, checkpoint: Checkpoint, present: set[str], found: Collection[str]) -> None:
        """No linear map within a layer lacks its scales."""
        from atb_models.models.quantized.packed.checks import check_there

        for name in sorted(present.difference(found)):
            if not name.endswith(WEIGHT) or not may_be_integers(name) or len(checkpoint.shape(name)) != 2:
                continue
            if self.matching.group_of(module_of(name)) is not None:
                check_there(checkpoint, present, f"{name}_scale", name)

    @cached_property
    def _found(self) -> _Found | None:
        """None: the folder holds no weights. Files are only opened where their content matters."""
        from atb_models.models.quantized.compressed.weight import keeps_order
        from atb_models.models.weights.checkpoint import has_weights, open_checkpoint

        if not has_weights(self.declared.folder):
            return None
        scattered, biased = set(), set()
        with open_checkpoint(self.declared.folder, quantized=True, log=False) as checkpoint:
            for name in checkpoint.names():
                module, _, part = name.rpartition(".")
                group = self.matching.group_of(module) if part in ("bias", "weight_g_idx") else None
                if group is None:
                    continue
                if part == "bias":
                    biased.add(module)
                elif group.ordered and group.block[1] and not keeps_order(checkpoint, name, group.block[1]):
                    scattered.add(module)
        return _Found(frozenset(scattered), frozenset(biased))

    def _is_scattered(self, module: str, group: Group) -> bool:
        """Without files every order by activation is taken for a scattered one."""
        if not group.ordered or group.block[1] is None:
            return False
        return self._found is None or module in self._found.scattered
