"""The optional packages: which extra brings each."""

from __future__ import annotations

# Importable names, by extra.
MODULES = {
    "server": ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic"),
    "hub": ("huggingface_hub", "modelscope"),
    "plot": ("matplotlib",),
    "npu": ("torch_npu",),
    "tokenizers": ("sentencepiece", "tiktoken"),
}


def extra_of(module: str) -> str | None:
    """The extra that brings an importable module; None: it is of none."""
    return next((extra for extra, modules in MODULES.items() if module.split(".")[0] in modules), None)
