"""The tensors of ModelSlim's weights that are floats, by the names that a float checkpoint has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from atb_models.errors import CheckpointError
from atb_models.models.quantized.modelslim.description import Description
from atb_models.models.quantized.modelslim.linears import StoredLinear
from atb_models.models.quantized.modelslim.norms import ANTI, ANTI_BIAS, find_norms
from atb_models.models.quantized.modelslim.tensors import Tensors
from atb_models.models.quantized.modelslim.types import STORAGES
from atb_models.wording import named, shown

if TYPE_CHECKING:
    from atb_models.models.weights.checkpoint import Checkpoint

# Tensors beside the weight of a quantised linear map. Those that its type does not use are not read.
_PARTS: Final = ("weight_scale", "weight_offset", "deq_scale", "quant_bias", "input_scale", "input_offset")


def find_floats(
    checkpoint: Checkpoint, description: Description, linears: Mapping[str, StoredLinear]
) -> dict[str, str]:
    """The tensors that are no part of a quantised linear map: name in a float checkpoint -> stored name.

    Raises CheckpointError for one that is no float, ConfigError for a norm that cannot serve all that it feeds.
    """
    tensors = Tensors(checkpoint, description)

    def is_left(name: str) -> bool:
        """Whether it is a part of a linear map, or one of the two forms of a norm."""
        stem, _, part = name.rpartition(".")
        linear = linears.get(f"{stem}.weight")
        if part == "bias" and linear is not None:
            return linear.storage.activations == "static"  # its quant_bias holds it
        typed = description.types.get(f"{stem}.weight") in STORAGES
        return name in linears or (typed and part in _PARTS) or name.endswith((ANTI, ANTI_BIAS))

    floats = {name: name for name in tensors.names if not is_left(name)}
    floats |= find_norms(tensors.names, linears, str(description.path))
    for stored in floats.values():
        if not tensors.is_float(stored):
            raise CheckpointError(
                f"{checkpoint.where(stored)}: tensor {named([stored])} is {checkpoint.dtype(stored)}, but"
                f" {description.path} has {shown(description.types.get(stored))} for it"
            )
    return floats
