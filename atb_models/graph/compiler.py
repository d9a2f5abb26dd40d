"""torch's compiler, which its meta kernels and dispatch modes import when they are first used."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile

_CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def import_compiler() -> None:
    """Import it without the cache folder that the import makes in the temporary folder and nobody here uses."""
    if "torch._dynamo" in sys.modules or _CACHE_FOLDER in os.environ:
        return
    os.environ[_CACHE_FOLDER] = tempfile.gettempdir()  # it is there already
    try:
        importlib.import_module("torch._dynamo")
    finally:
        del os.environ[_CACHE_FOLDER]
