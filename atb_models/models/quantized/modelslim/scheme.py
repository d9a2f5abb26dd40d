"""What ModelSlim's files say of a checkpoint, as a scheme."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atb_models.errors import ConfigError
from atb_models.layers.storage import Storage
from atb_models.models.quantized.modelslim.biases import zero_biases
from atb_models.models.quantized.modelslim.description import (
    Description,
    find_description,
    read_description,
    settings_of,
)
from atb_models.models.quantized.modelslim.floats import find_floats
from atb_models.models.quantized.modelslim.linears import StoredLinear, assumed_storage, find_linears
from atb_models.models.quantized.modelslim.norms import find_norms
from atb_models.models.quantized.modelslim.tensors import Tensors
from atb_models.models.quantized.modelslim.types import METHODS, STORAGES, refusal
from atb_models.models.quantized.scheme import FLOATS
from atb_models.models.weights.names import KV_SCALES
from atb_models.wording import shown

if TYPE_CHECKING:
    from atb_models.models.weights.checkpoint import Checkpoint
    from atb_models.models.weights.source import WeightSource

logger = logging.getLogger(__name__)


def read(folder: Path, config: Mapping[str, Any]) -> ModelSlim:
    """The scheme of ModelSlim's weights. Raises ConfigError and CheckpointError as `read_scheme` does."""
    place = str(folder / "config.json")
    quantize = _method(config.get("quantize"), place)
    path = find_description(folder, config.get("quantize") or None)
    description = read_description(path, settings_of(config, place), place)
    return ModelSlim(folder, description, quantize or _method_of(description))


def _method(quantize: Any, place: str) -> str | None:
    """The word that MindIE makes of `quantize`; None where it is absent."""
    if not quantize:
        return None
    if isinstance(quantize, str) and quantize.lower() in METHODS:
        return METHODS[quantize.lower()]
    reason = refusal(quantize) if isinstance(quantize, str) else None
    choice = f"but only {', '.join(METHODS)} are read"
    raise ConfigError(f"{place}: quantize is {shown(quantize)}, {choice}{f': those are {reason}' if reason else ''}")


def _method_of(description: Description) -> str:
    """The word for weights without `quantize`: of the type that the description has for the model, or of a tensor."""
    if (word := (description.quant_type or "").lower()) in METHODS:
        return METHODS[word]
    kinds = set(description.types.values())
    return next((METHODS[kind.lower()] for kind in STORAGES if kind in kinds), FLOATS)


class ModelSlim:
    """A scheme. Storages follow from the description and, where the weights are there, from their files' tables."""

    def __init__(self, folder: Path, description: Description, method: str) -> None:
        self._folder = folder
        self._description = description
        self._linears: dict[str, StoredLinear] | None = None  # by the files' tables, once they were read
        self._zero_biases: frozenset[str] = frozenset()  # found at the same time
        self.method = method

    @property
    def name(self) -> str:
        return f"ModelSlim, {self.method}"

    @property
    def kv_scales(self) -> bool:
        """Whether there are scales of an int8 KV cache: `<layer>.self_attn.k_proj.kv_cache_scale` and its like."""
        return any(name.endswith(KV_SCALES) for name in self._description.types)

    def storage(self, weight: str) -> Storage | None:
        if self._linears is None and self._has_weights:
            from atb_models.models.weights.checkpoint import open_checkpoint

            with open_checkpoint(self._folder, quantized=True, log=False) as checkpoint:
                self._find(checkpoint)
        if self._linears is not None:
            return self._linears[weight].storage if weight in self._linears else None
        kind = self._description.types.get(weight)
        return assumed_storage(kind, self._description) if kind in STORAGES else None

    def has_bias(self, weight: str) -> bool:
        storage = self.storage(weight)
        if storage is not None and storage.activations == "static":
            return False
        bias = f"{weight.removesuffix('.weight')}.bias"
        return (bias in self._description.types and bias not in self._zero_biases) or weight in self._norms

    def open(self, checkpoint: Checkpoint) -> WeightSource:
        from atb_models.models.quantized.modelslim.source import ModelSlimWeights

        linears = self._find(checkpoint) if self._linears is None else self._linears
        floats = find_floats(checkpoint, self._description, linears)
        if any(name.endswith(KV_SCALES) for name in floats):
            logger.warning("%s has scales of an int8 KV cache, which are not used", checkpoint.listing)
        return ModelSlimWeights(checkpoint, linears, floats, self._zero_biases)

    def _find(self, checkpoint: Checkpoint) -> dict[str, StoredLinear]:
        """Keep what the files hold beyond the description; the linear maps."""
        self._linears = find_linears(checkpoint, self._description, self.method)
        self._zero_biases = zero_biases(checkpoint, Tensors(checkpoint, self._description))
        return self._linears

    @cached_property
    def _has_weights(self) -> bool:
        return any(self._folder.glob("*.safetensors"))

    @cached_property
    def _norms(self) -> dict[str, str]:
        quantized = {name for name in self._description.types if self.storage(name) is not None}
        return find_norms(self._description.types, quantized, str(self._description.path))
