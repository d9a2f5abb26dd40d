"""The build backend of pyproject.toml: setuptools', which asks for a C++ compiler from PyPI where there is none.

setup.py's command `build_native` compiles the CPU's library with the functions of a file in the package. It is loaded
by its path: to import the package would need what is not installed yet.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).parent
ZIGLANG = "ziglang==0.17.1"
OLDEST_SETUPTOOLS = 77  # as in pyproject.toml, which nobody reads where builds are not isolated

if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
    raise ImportError(
        f"setuptools {setuptools.__version__} is too old to build this project without isolation:"
        f" {shlex.quote(sys.executable)} -m pip install 'setuptools>={OLDEST_SETUPTOOLS}'"
    )


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("atb_models_native_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


native = _load(ROOT / "atb_models" / "ops" / "native" / "build.py")
LEVELS = native.levels_of(platform.machine()) if sys.platform == "linux" else ()


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What setuptools asks for, and a compiler where the levels need one."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_compiler(LEVELS)]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """The same; levels that lie in the tree and were made from these sources need no compiler."""
    levels = native.stale(LEVELS, native.find_compiler())
    return [*build_meta.get_requires_for_build_editable(config_settings), *_compiler(levels)]


def _compiler(levels: Any) -> list[str]:
    """What to install for compiling `levels`: nothing where a compiler is there, or where none can be had."""
    if not levels or native.find_compiler() is not None or not obtainable():
        return []
    return [ZIGLANG]


def obtainable() -> bool:
    """Whether pip may find ziglang: not where PIP_NO_INDEX leaves it only folders that do not hold it."""
    if os.environ.get("PIP_NO_INDEX", "").lower() not in ("1", "true", "yes", "on", "y", "t"):
        return True
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    wheel = f"{ZIGLANG.replace('==', '-')}-*{platform.machine()}*.whl"
    return any(_remote(link) or any(Path(link.removeprefix("file://")).glob(wheel)) for link in links)


def _remote(link: str) -> bool:
    return "://" in link and not link.startswith("file://")


def compile_levels(folder: Path) -> list[str]:
    """Compile into `folder` what is not there yet; returns what went wrong, one line a level."""
    compiler = native.find_compiler()
    outcomes = native.build(native.stale(LEVELS, compiler, folder), compiler, folder)
    return [f"{outcome.level.name} is not built: {outcome.complaint}" for outcome in outcomes if outcome.complaint]
