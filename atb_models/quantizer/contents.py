"""The tensors that are written, in the internal form: read from the source, one linear map at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.models.weights.source import WeightSource
from atb_models.quantizer.formats.form import QuantizedLinear
from atb_models.quantizer.static import InputRange, static_parts


@dataclass(frozen=True)
class Contents:
    """source: in the internal form (see models/quantized/scheme.py); for maps in `ranges` with dynamic activations.

    ranges: of the inputs of maps that get static activations, by path. dtype: what the model computes in.
    """

    source: WeightSource
    dtype: torch.dtype
    ranges: Mapping[str, InputRange] = field(default_factory=dict)

    def parts(self, linear: QuantizedLinear) -> Mapping[str, Tensor]:
        """The internal form's tensors of a map, by the end of their name.

        Raises CheckpointError for a tensor that cannot be read, or has numbers that cannot be quantised.
        """
        weight, scale = self._read(linear, "weight", torch.int8), self._read(linear, "weight_scale", torch.float32)
        storage = linear.storage
        if (seen := self.ranges.get(linear.path)) is not None:
            has_bias = f"{linear.path}.bias" in self.source.names()
            bias = self._read(linear, "bias", torch.float32) if has_bias else None
            return static_parts(weight, scale, bias, seen, self.dtype)
        more: dict[str, torch.dtype] = {"weight_offset": torch.float32} if storage.offset else {}
        if storage.activations == "static":
            more |= {"input_scale": torch.float32, "input_offset": torch.float32, "quant_bias": torch.int32}
        held = {end: self._read(linear, end, dtype) for end, dtype in more.items()}
        return {"weight": weight, "weight_scale": scale, **held}

    def _read(self, linear: QuantizedLinear, end: str, dtype: torch.dtype) -> Tensor:
        name = f"{linear.path}.{end}"
        whole = torch.empty(self.source.shape(name), dtype=dtype)
        if numbers := self.source.read_into(name, None, 0, 0, whole):
            raise CheckpointError(
                f"{self.source.where(name)}: {numbers} numbers of tensor {name} are infinite or no numbers, so it"
                f" cannot be quantised; --float '{linear.path}' leaves it as it is"
            )
        return whole
