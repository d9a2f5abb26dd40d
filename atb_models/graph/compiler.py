"""torch's compiler, which its meta kernels and dispatch modes import when they are first used."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile

from atb_models import env
from atb_models.machine.imports import import_compiler_for_good

_CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def import_compiler() -> None:
    """Import it without the cache folder that the import makes in the temporary folder and nobody here uses, unless the
    user has named one."""
    if "torch._dynamo" in sys.modules:
        return
    is_set = env.is_set(_CACHE_FOLDER)
    env.set_default(_CACHE_FOLDER, tempfile.gettempdir())  # it is there already
    try:
        with import_compiler_for_good():
            importlib.import_module("torch._dynamo")
    finally:
        if not is_set:
            del os.environ[_CACHE_FOLDER]
