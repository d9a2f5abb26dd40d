"""The CPU: the level of the native library that this processor has, torch where there is none."""

from __future__ import annotations

from atb_models.ops import cpu_torch
from atb_models.ops.native import library
from atb_models.ops.native.serve import native_backend
from atb_models.ops.table import Backend


def backend() -> Backend:
    """What serves on this CPU. Raises ConfigError for a level that ATB_CPU_ISA names and that is not there."""
    level = library.active().level
    return cpu_torch.BACKEND if level is None else native_backend(library.load(level.name))
