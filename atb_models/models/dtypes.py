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


DTYPES = {"fp16": Names("float16", "F16"), "bf16": Names("bfloat16", "BF16"), "fp32": Names("float32", "F32")}


def torch_dtype(name: str) -> torch.dtype:
    """torch's type for one of the keys of DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name].torch)
    return dtype
