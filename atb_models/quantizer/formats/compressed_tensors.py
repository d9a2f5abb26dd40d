"""The format of the compressed-tensors library, which vLLM, SGLang and vllm-ascend read.

int-quantized: 8 bits with int8 activations. pack-quantized: 8 or 4 bits in int32 words, activations as floats.
Source: the library's compressors and its description of `quantization_config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from atb_models.errors import ConfigError
from atb_models.quantizer.formats.bits import words
from atb_models.quantizer.formats.form import QuantizedLinear, Stored


class CompressedTensorsFiles:
    """One group of settings for all linear maps but those of the `ignore` list."""

    def __init__(
        self, method: str, dtype: torch.dtype, linears: Sequence[QuantizedLinear], floats: Sequence[str]
    ) -> None:
        storages = {linear.storage for linear in linears}
        for storage in storages:
            if storage.activations == "static":
                raise ConfigError(
                    f"--format compressed-tensors has no place for {method}, whose activations have a scale that"
                    " includes the bias; write --format modelslim, or --to w8a8_dynamic"
                )
            if storage.offset:
                raise ConfigError(
                    "--format compressed-tensors is written with scales alone, but the weights of this checkpoint have"
                    " offsets too; write --format modelslim"
                )
        if len(storages) > 1:
            raise ConfigError(
                "--format compressed-tensors is written with one group of settings, but the linear maps of this"
                f" checkpoint are stored in {len(storages)} ways; write --format modelslim"
            )
        (self._storage,) = storages
        self._floats = tuple(floats)

    def stored(self, linear: QuantizedLinear) -> tuple[Stored, ...]:
        outputs, inputs = linear.shape
        table: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        table["weight_scale"] = torch.float32, (outputs, linear.groups)
        if self._is_packed:
            per_word = 32 // linear.storage.bits
            table["weight_packed"] = torch.int32, (outputs, -(-inputs // per_word))
            table["weight_shape"] = torch.int64, (2,)
        else:
            table["weight"] = torch.int8, linear.shape
        return tuple(Stored(f"{linear.path}.{end}", *entry) for end, entry in table.items())

    def packed(self, linear: QuantizedLinear, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        held = {"weight_scale": parts["weight_scale"].reshape(linear.shape[0], linear.groups)}
        if self._is_packed:
            held["weight_packed"] = words(parts["weight"], linear.storage.bits)
            held["weight_shape"] = torch.tensor(linear.shape)
        else:
            held["weight"] = parts["weight"]
        return {f"{linear.path}.{end}": tensor for end, tensor in held.items()}

    def file_name(self, number: int, count: int) -> str:
        return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"

    def config(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in raw.items() if key not in ("quantize", "quantization")}
        activations = None if self._is_packed else _arguments(8, "token", dynamic=True)
        strategy = "channel" if self._storage.group is None else "group"
        group = {
            "targets": ["Linear"],
            "weights": _arguments(self._storage.bits, strategy, group_size=self._storage.group),
            "input_activations": activations,
            "output_activations": None,
        }
        return kept | {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized" if self._is_packed else "int-quantized",
                "quantization_status": "compressed",
                "config_groups": {"group_0": group},
                "ignore": list(self._floats),
                "kv_cache_scheme": None,
            }
        }

    def documents(self, tensors: Sequence[Stored]) -> dict[str, Any]:
        return {}

    @property
    def _is_packed(self) -> bool:
        return self._storage.activations == "float"


def _arguments(bits: int, strategy: str, *, group_size: int | None = None, dynamic: bool = False) -> dict[str, Any]:
    """How one kind of numbers is quantised, in the library's words."""
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": dynamic,
    }
