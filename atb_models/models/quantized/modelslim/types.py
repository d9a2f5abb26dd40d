"""ModelSlim's types of tensors: those that are read, and why the others are not."""

from __future__ import annotations

import re
from typing import Final

from atb_models.layers.storage import Storage

FLOAT: Final = "FLOAT"
STATIC: Final = "W8A8"
DYNAMIC: Final = "W8A8_DYNAMIC"
MIX: Final = "W8A8_MIX"

# Types of a linear map's weight. W8A8_MIX has scales of both kinds, static for decode steps and dynamic for prompts;
# here all steps are dynamic, so that an answer does not depend on how its prompt was cut into steps.
STORAGES: Final = {
    STATIC: Storage(8, activations="static"),
    DYNAMIC: Storage(8, activations="token"),
    MIX: Storage(8, activations="token"),
    "W8A16": Storage(8),
    "W4A16": Storage(4),
}
# Of tensors that are no weights: the scales of an int8 KV cache.
KV_TYPES: Final = ("C8", "KV8")
# Values of `quantize` in config.json, and what MindIE makes of them.
METHODS: Final = {
    **{method.lower(): method.lower() for method in STORAGES},
    "w8a8_mix": "w8a8_pdmix",
    "w8a8_pdmix": "w8a8_pdmix",
}

_REFUSED: Final = (
    (r"W8A8SC?|W16A16SC?", "sparse weights, which only the unit of an Atlas 300I DUO for compressed weights can use"),
    (r"W4A8(_.*)?", "4-bit weights whose scales come in two stages, for products with int8 activations"),
    (r"W4A4(_.*)?", "4-bit activations, which are not computed here"),
    (r"W8A8_TIMESTEP", "scales for each step of a diffusion model"),
    (r"FAK?Quant", "queries, keys and values quantised within the attention, which is not computed here"),
    (r"NF4", "a table of 4-bit values in place of integers"),
    (r".*(MXFP|FP8|FP4).*", "8-bit or 4-bit floats, which Atlas 800I A2 does not multiply and which are not read here"),
)


def refusal(kind: str) -> str | None:
    """Why tensors of this type are not read, and what is; None for a type that ModelSlim does not have."""
    for pattern, reason in _REFUSED:
        if re.fullmatch(pattern, kind, re.IGNORECASE):
            readable = ", ".join(STORAGES)
            return f"{reason}; quantise the float weights again with ModelSlim as one of {readable}"
    return None
