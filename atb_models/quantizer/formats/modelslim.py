"""ModelSlim's format, version 1.0.0, which MindIE and vllm-ascend read.

Sources: the saver of Ascend's msmodelslim (ascendv1), and the loaders of MindIE-LLM and vllm-ascend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from atb_models.errors import ConfigError
from atb_models.models.dtypes import DTYPES, torch_dtype
from atb_models.quantizer.formats.bits import nibbles
from atb_models.quantizer.formats.form import QuantizedLinear, Stored

DESCRIPTION: Final = "quant_model_description.json"
VERSION: Final = "1.0.0"
_WEIGHTS: Final = "quant_model_weights"


class ModelSlimFiles:
    """Integers with scales and offsets, which are zero here, and a file that names the kind of every tensor.

    Four bits are packed two by two: along the outputs where inputs are grouped, along the inputs where a whole row
    shares a scale.
    """

    def __init__(
        self, method: str, dtype: torch.dtype, linears: Sequence[QuantizedLinear], floats: Sequence[str]
    ) -> None:
        self._dtype = dtype
        # A mixture of static and dynamic activations goes by the dynamic's name, under which MindIE takes both.
        self._method = "w8a8_dynamic" if method == "w8a8" else method
        groups = sorted({linear.storage.group or 0 for linear in linears})
        if len(groups) > 1:
            raise ConfigError(
                f"--format modelslim is written with one group size, but this checkpoint has {groups} (0: a whole row)"
            )
        (self._group,) = groups

    def stored(self, linear: QuantizedLinear) -> tuple[Stored, ...]:
        kind, outputs = _kind(linear), linear.shape[0]
        if linear.storage.activations == "static":
            scale = torch.int64 if self._dtype == torch.float16 else torch.float32
            table = {
                "weight": (torch.int8, linear.shape),
                "quant_bias": (torch.int32, (outputs,)),
                "input_scale": (self._dtype, (1,)),
                "input_offset": (self._dtype, (1,)),
                "deq_scale": (scale, (outputs,)),
            }
        else:
            scales = outputs, linear.groups
            table = {
                "weight": (torch.int8, _packed_shape(linear)),
                "weight_scale": (torch.float32, scales),
                "weight_offset": (torch.float32, scales),
            }
        return tuple(Stored(f"{linear.path}.{end}", *entry, kind) for end, entry in table.items())

    def packed(self, linear: QuantizedLinear, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if linear.storage.activations == "static":
            scale = parts["weight_scale"]
            if self._dtype == torch.float16:  # the bits of the float32 in the low word
                scale = scale.view(torch.int32).to(torch.int64)
            held = {
                "weight": parts["weight"],
                "quant_bias": parts["quant_bias"],
                "input_scale": parts["input_scale"].to(self._dtype),
                "input_offset": parts["input_offset"].to(self._dtype),
                "deq_scale": scale,
            }
        else:
            scale = parts["weight_scale"].reshape(linear.shape[0], linear.groups)
            offset = parts.get("weight_offset")
            held = {
                "weight": _packed_weight(linear, parts["weight"]),
                "weight_scale": scale,
                "weight_offset": torch.zeros_like(scale) if offset is None else offset.reshape(scale.shape),
            }
        return {f"{linear.path}.{end}": tensor for end, tensor in held.items()}

    def file_name(self, number: int, count: int) -> str:
        return f"{_WEIGHTS}-{number:05d}-of-{count:05d}.safetensors"

    def config(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """`quantize`, and what MindIE needs beside it: a torch_dtype, and the group size where inputs are grouped."""
        (name,) = (names.torch for short, names in DTYPES.items() if torch_dtype(short) == self._dtype)
        kept = {key: value for key, value in raw.items() if key not in ("quantization_config", "compression_config")}
        content = {**kept, "torch_dtype": name, "quantize": self._method}
        return content | ({"quantization_config": {"group_size": self._group}} if self._group else {})

    def documents(self, tensors: Sequence[Stored]) -> dict[str, Any]:
        content: dict[str, Any] = {"model_quant_type": self._method.upper(), "version": VERSION}
        content["group_size"] = self._group
        return {DESCRIPTION: content | {tensor.name: tensor.kind for tensor in tensors}}


def _kind(linear: QuantizedLinear) -> str:
    """What the description calls the tensors of a map."""
    storage = linear.storage
    if storage.activations == "static":
        return "W8A8"
    return "W8A8_DYNAMIC" if storage.activations == "token" else f"W{storage.bits}A16"


def _packed_shape(linear: QuantizedLinear) -> tuple[int, int]:
    outputs, inputs = linear.shape
    if linear.storage.bits == 8:
        return linear.shape
    number, what = (outputs, "outputs") if linear.storage.group else (inputs, "inputs")
    if number % 2:
        raise ConfigError(
            f"{linear.path} has {number} {what}, but this format packs four bits of two of them into a byte;"
            f" --float '{linear.path}' leaves it as it is"
        )
    return (outputs // 2, inputs) if linear.storage.group else (outputs, inputs // 2)


def _packed_weight(linear: QuantizedLinear, integers_OI: Tensor) -> Tensor:
    if linear.storage.bits == 8:
        return integers_OI
    if linear.storage.group:
        return nibbles(integers_OI[0::2], integers_OI[1::2])
    return nibbles(integers_OI[:, 0::2], integers_OI[:, 1::2])
