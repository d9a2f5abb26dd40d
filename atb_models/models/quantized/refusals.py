"""Quantised formats that are not read, by the names that config.json has for them, and what makes floats of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

_BY_TRANSFORMERS: Final = "transformers makes floats of it: model.dequantize(), then save_pretrained()"
_BY_LAYERS: Final = "its layers have dequantize(), which gives floats"

# By quant_method, in lower case and with hyphens.
CONVERTERS: Final[Mapping[str, str]] = {
    "auto-round": "AutoRound writes the same weights as GPTQ or AWQ: format auto_gptq or auto_awq",
    "bitsandbytes": _BY_TRANSFORMERS,
    "gguf": "transformers makes floats of the file: from_pretrained(folder, gguf_file=name), then save_pretrained()",
    "higgs": _BY_TRANSFORMERS,
    "hqq": _BY_LAYERS,
    "intel/auto-round": "AutoRound writes the same weights as GPTQ or AWQ: format auto_gptq or auto_awq",
    "mlx": "mlx_lm.convert --dequantize makes floats of it",
    "mxfp4": "transformers makes floats of it: Mxfp4Config(dequantize=True), then save_pretrained()",
    "quanto": _BY_LAYERS,
    "torchao": _BY_LAYERS,
}
_OF_ALL: Final = "take the float weights that it was made from"


def advice(method: str, formats: Iterable[str]) -> str:
    """What to do about weights of a method that is none of the formats that are read."""
    readable = ", ".join((*sorted(formats), "ModelSlim"))
    return (
        f"but only {readable} can be read; {CONVERTERS.get(method, _OF_ALL)}"
        " (--quantize w8a16 stores floats as int8 while they are loaded)"
    )
