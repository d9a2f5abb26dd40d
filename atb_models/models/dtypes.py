"""The data types that weights are stored and computed in, by their names here, in torch and in safetensors files.

torch is imported only when one of its types is asked for: the launcher reads a config.json without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Names(NamedTuple):
    """What others call a data type."""

    torch: str  # also in config.json
    safetensors: str


# What the files of a quantised checkpoint hold beside floats: safetensors' name -> torch's.
QUANTIZED = {"I8": "int8", "U8": "uint8", "I32": "int32", "I64": "int64", "F8_E4M3": "float8_e4m3fn"}
AUTO = "auto"  # what config.json says, which may be nothing
DEFAULT = "fp16"
DTYPES = {"fp16": Names("float16", "F16"), "bf16": Names("bfloat16", "BF16"), "fp32": Names("float32", "F32")}
KV_DTYPES = (AUTO, "int8")  # of the KV cache; auto: the data type that the run computes in
# Users of other engines know them by torch's names.
ALIASES = {names.torch: short for short, names in DTYPES.items()} | {"half": "fp16", "float": "fp32"}


def dtype_name(text: str) -> str:
    """The key of DTYPES for one of ALIASES, with or without torch's name before it; any other text as it is."""
    return ALIASES.get(text.removeprefix("torch."), text)


def readable(*, quantized: bool) -> dict[str, torch.dtype]:
    """torch's types by the names in safetensors files: floats, and with `quantized` those of QUANTIZED."""
    import torch

    stored = {names.safetensors: names.torch for names in DTYPES.values()} | (QUANTIZED if quantized else {})
    return {name: getattr(torch, theirs) for name, theirs in stored.items()}


def torch_dtype(name: str) -> torch.dtype:
    """torch's type for one of the keys of DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name].torch)
    return dtype


def kv_torch_dtype(name: str) -> torch.dtype | None:
    """torch's type for one of KV_DTYPES; None: that of the run."""
    import torch

    return torch.int8 if name == "int8" else None
