"""The optional packages: which extra brings each, and how that is installed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

# Importable names, by extra.
MODULES = {
    "server": ("fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic"),
    "hub": ("huggingface_hub", "modelscope"),
    "plot": ("matplotlib",),
    "npu": ("torch_npu",),
}
ROOT = Path(__file__).resolve().parents[2]


def extra_of(module: str) -> str | None:
    """The extra that brings an importable module; None: it is of none."""
    return next((extra for extra, modules in MODULES.items() if module.split(".")[0] in modules), None)


def install_command(extra: str) -> str:
    """The command that installs an extra for this interpreter: from the checkout, or as the wheel was installed."""
    if (ROOT / "pyproject.toml").is_file():
        return shlex.join([sys.executable, "-m", "pip", "install", "-e", f"{ROOT}[{extra}]"])
    return f"{shlex.quote(sys.executable)} -m pip install 'FILE[{extra}]', FILE being the wheel this was installed from"
