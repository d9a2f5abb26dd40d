"""Importing torch and its compiler, which make half a million objects, in the programs of this package.

Nearly all of these stay until the process ends. Looking through them for garbage takes a sixth of the time of the
imports, and a tenth of a second of a running engine now and then.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_torch_for_good() -> Iterator[None]:
    """The block imports torch: no garbage collection looks at what is there at its end, neither then nor later.

    For programs that are ours alone. Nothing changes where torch is there already, as in a test or a notebook.
    """
    if "torch" in sys.modules:
        yield
        return
    with _for_good():
        yield


@contextmanager
def import_compiler_for_good() -> Iterator[None]:
    """The same for torch's compiler, in a program that has imported torch for good."""
    if not gc.get_freeze_count():
        yield
        return
    with _for_good():
        yield


@contextmanager
def _for_good() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
