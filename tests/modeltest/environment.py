"""What a result depends on besides its settings: versions, device, host, variables, revision."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atb_models
from atb_models import env

if TYPE_CHECKING:
    from atb_models import LLM

PACKAGES = ("torch", "torch_npu", "transformers", "tokenizers", "safetensors", "numpy")
INTERNAL = "ATB_LAUNCHER_"
GIT_SECONDS = 10


def facts(llm: LLM | None) -> dict[str, Any]:
    """All of it, for the record. llm: the engine, whose device is named; None: no device was used.

    quantization: the method that quantised the weights, while they were loaded or in the checkpoint; None: floats.
    A version is None where the package is not installed; git is None outside a checkout of this project.
    """
    return {
        "versions": {"python": platform.python_version(), "atb_models": atb_models.__version__, **_versions()},
        "device": None if llm is None else _device(llm),
        "quantization": None if llm is None else llm.quantization,
        "host": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "variables": _variables(),
        "git": revision(Path(atb_models.__file__).resolve().parent),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _device(llm: LLM) -> dict[str, str]:
    kind = llm.device.type
    if kind == "cpu":
        return {"type": kind, "name": _cpu()}
    import torch

    return {"type": kind, "name": getattr(torch, kind).get_device_name(llm.device)}


def _cpu() -> str:
    """The processor's name; its architecture where the kernel gives none, as on ARM."""
    try:
        match = re.search(r"^model name\s*: *(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.machine()


def _variables() -> dict[str, str]:
    """The variables that this program, its libraries or MindIE's read, without keys and passwords."""
    names = [name for name in sorted(os.environ) if name in env.TABLE or name.startswith(env.PREFIXES)]
    return {name: env.shown_value(name, os.environ[name]) for name in names if not name.startswith(INTERNAL)}


def revision(folder: Path) -> dict[str, Any] | None:
    """Revision of the checkout that `folder` is of, and whether its files were changed since.

    An installed package may lie inside some other repository, which does not know its files.
    """
    if _git_says(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit, changes = _git_says(folder, "rev-parse", "HEAD"), _git_says(folder, "status", "--porcelain")
    return None if commit is None or changes is None else {"revision": commit, "dirty": bool(changes)}


def _git_says(folder: Path, *words: str) -> str | None:
    """What git prints, or None where there is no git, no repository or no answer."""
    try:
        ended = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()
