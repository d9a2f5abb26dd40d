"""How the weights of a checkpoint with quant_method fp8 are stored. Importing it needs no torch.

`<linear>.weight` has `<linear>.weight_scale_inv` beside it, one for each block of weight_block_size, or, without such
blocks, `<linear>.weight_scale`, one for each output or for all. Either is multiplied: weight = number * scale. The
engine computes with none of these numbers: weights become floats while they are read, and activations stay floats.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atb_models.layers.storage import Storage
from atb_models.models.config_fields import Fields
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.rules import module_of, warn_of_unknown
from atb_models.wording import counted

if TYPE_CHECKING:
    from atb_models.models.quantized.packed.source import UnpackingWeights
    from atb_models.models.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

# Those that are asked for; those that other engines compute with; and rules of which the files tell the outcome.
FIELDS: Final = frozenset(
    """quant_method weight_block_size fmt activation_scheme scale_fmt ignored_layers modules_to_not_convert
    kv_cache_scheme dequantize""".split()
)
# What is beside weights, or beside keys and values, and of no use to floats.
_UNUSED: Final = (".input_scale", ".k_scale", ".v_scale", ".q_scale", ".prob_scale")
_MOST_BLOCK: Final = 1 << 16


def read(declared: Declaration) -> Float8:
    """The scheme of a folder that declares fp8. Raises ConfigError for a value that is not read."""
    fields = Fields(declared.fields, Path(declared.place))
    fields.choice("activation_scheme", ("dynamic", "static"), "dynamic")
    if fields.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3", "float8_e4m3fn"):
        raise fields.fail("fmt", "but only e4m3 is read; take the float weights that it was made of")
    return Float8(declared, _block(fields))


@dataclass(frozen=True)
class Float8:
    """block: outputs and inputs that share a scale; None: what the shapes of the scales say."""

    declared: Declaration
    block: tuple[int, int] | None

    @property
    def name(self) -> str:
        return "float8" + (f" in blocks of {self.block[0]} x {self.block[1]}" if self.block else "")

    @property
    def method(self) -> str:
        return "float8"

    def storage(self, weight: str) -> Storage | None:
        return None

    def has_bias(self, weight: str) -> bool:
        return False

    def open(self, checkpoint: Checkpoint) -> UnpackingWeights:
        """Raises CheckpointError for a tensor that is missing or does not fit."""
        from atb_models.models.quantized.float8.weight import DTYPE, SCALES, float8_weight
        from atb_models.models.quantized.packed.source import UnpackingWeights

        warn_of_unknown(self.declared, FIELDS)
        present = checkpoint.names()
        small = sorted(name for name in present if checkpoint.dtype(name) == DTYPE)
        logger.info(
            "%s: %s of 8-bit floats become floats while they are read, and take the memory of floats",
            self.declared.place,
            counted(len(small), "weight"),
        )
        weights = {name: float8_weight(checkpoint, present, name, self.block) for name in small}
        hidden = {f"{module_of(name)}.{scale}" for name in small for scale in SCALES}
        hidden |= {*small, *(name for name in present if name.endswith(_UNUSED))}
        return UnpackingWeights(checkpoint, weights, self.storage, hidden)


def _block(fields: Fields) -> tuple[int, int] | None:
    value = fields.get("weight_block_size")
    if value is None:
        return None
    sizes = value if isinstance(value, list) else []
    if len(sizes) != 2 or not all(type(size) is int and 1 <= size <= _MOST_BLOCK for size in sizes):
        raise fields.fail("weight_block_size", "but must be two integers, the outputs and the inputs of a block")
    return sizes[0], sizes[1]
