"""How the engines hold the model, by the names of --dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Stored(NamedTuple):
    """How an engine holds and multiplies the weights of linear maps.

    element: bytes of such a weight. products: the data type of what is multiplied with what.
    """

    element: float
    products: torch.dtype


@dataclass(frozen=True)
class Dtype:
    """dtype, quantize: our own flags. python: how this engine and others in Python hold it; gguf: a file of `kind`."""

    dtype: str
    quantize: str | None
    kind: str
    python: Stored
    gguf: Stored


HALF, BFLOAT = Stored(2.0, torch.float16), Stored(2.0, torch.bfloat16)
# Q8_0: blocks of 32 int8 with a scale in fp16; its programs round the activations to such blocks as well. Our int8
# weights have a scale for each output feature, which is not worth counting, and are multiplied as bf16.
Q8_0 = Stored(34 / 32, torch.int8)
DTYPES = {
    "fp16": Dtype("fp16", None, "F16", HALF, HALF),
    "bf16": Dtype("bf16", None, "BF16", BFLOAT, BFLOAT),
    "w8a16": Dtype("bf16", "w8a16", "Q8_0", Stored(1.0, torch.bfloat16), Q8_0),
}
