"""What a format of quantised checkpoints says of its files: names, types and shapes, and how numbers are packed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from atb_models.layers.storage import Storage


@dataclass(frozen=True)
class Stored:
    """One tensor of the written checkpoint. kind: how ModelSlim's description calls it, FLOAT where it is as it was."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    kind: str = "FLOAT"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class QuantizedLinear:
    """A quantised linear map: its path in the checkpoint, the weight's shape [O, I], and how that is stored."""

    path: str
    shape: tuple[int, int]
    storage: Storage

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return 1 if self.storage.group is None else -(-self.shape[1] // self.storage.group)


class Form(Protocol):
    """A format, for one checkpoint.

    method: what the linear maps become, a value of --to. dtype: what the model computes in. Both methods of a linear
    map raise ConfigError, with what to do, for one that the format cannot express.
    """

    def __init__(
        self, method: str, dtype: torch.dtype, linears: Sequence[QuantizedLinear], floats: Sequence[str]
    ) -> None:
        """floats: the paths of the linear maps that stay as they are, those outside of layers included."""

    def stored(self, linear: QuantizedLinear) -> tuple[Stored, ...]:
        """The tensors that the map's weight becomes."""

    def packed(self, linear: QuantizedLinear, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The contents of `stored` by name, from the tensors of the internal form (see models/quantized/scheme.py).

        parts: by the end of their name, such as weight and weight_scale.
        """

    def file_name(self, number: int, count: int) -> str:
        """Of a file of tensors; number: from 1 on."""

    def config(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The content of config.json, from that of the checkpoint of floats."""

    def documents(self, tensors: Sequence[Stored]) -> dict[str, Any]:
        """File name -> content of the JSON files beside config.json that describe all these tensors."""
