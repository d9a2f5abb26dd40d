"""ModelSlim's weights, as MindIE and vllm-ascend read them.

A file quant_model_description*.json gives the type of every tensor, and `quantize` of config.json that of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from atb_models.errors import ConfigError
from atb_models.models.quantized.scheme import Scheme

DESCRIPTION: Final = "quant_model_description"
# What ModelSlim has in quantization_config.
SETTINGS: Final = frozenset(
    ("group_size", "kv_quant_type", "kv_cache_type", "fa_quant_type", "reduce_quant_type", "pdmix")
)


def is_declared(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether config.json or a file beside it says that the weights are ModelSlim's."""
    return bool(config.get("quantize")) or any(folder.glob(f"{DESCRIPTION}*.json"))


def read(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """The scheme of ModelSlim's weights; None where nothing declares any."""
    if not is_declared(folder, config):
        return None
    raise ConfigError(f"{folder}: ModelSlim's weights are not read yet; take the float weights")
