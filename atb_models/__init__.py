"""Paged-attention, tensor-parallel inference for mixture-of-experts language models.

    from atb_models import LLM, SamplingParams
    with LLM() as llm:
        print(llm.generate(["What's deep learning?"], SamplingParams(max_tokens=20))[0].text)

The names are imported on first use, so that `atb-models env` and the launcher's checks need no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atb_models.engine.llm import LLM as LLM
    from atb_models.outputs import RequestOutput as RequestOutput
    from atb_models.sampling_params import SamplingParams as SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "RequestOutput", "SamplingParams", "__version__"]

_HOME = {
    "LLM": "atb_models.engine.llm",
    "RequestOutput": "atb_models.outputs",
    "SamplingParams": "atb_models.sampling_params",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "torch" not in sys.modules:
        # torch_npu is imported where it is used; torch's own import of it fails where CANN is missing
        import_module("atb_models.env").set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
