"""What happened on the pretend device since the last `reset`: operators, copies and times the host waited for it."""

from __future__ import annotations

import ctypes
from collections import Counter
from functools import cache

OPERATORS: Counter[str] = Counter()  # by their names in torch, as npu::npu_swiglu or aten::mm
COPIES: Counter[str] = Counter()  # "to_host", "to_device"
_waits: Counter[str] = Counter()


def waited(why: str) -> None:
    """The host needs a result of the device before it can go on."""
    _waits[why] += 1


def waits() -> Counter[str]:
    """Times the host waited, by reason; "synchronize" are explicit ones, of streams, devices and events."""
    return _waits + Counter({"synchronize": _library().soft_npu_synchronisations()})


def reset() -> None:
    for counter in (OPERATORS, COPIES, _waits):
        counter.clear()
    _library().soft_npu_reset()


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libascendcl.so")
    library.soft_npu_synchronisations.restype = ctypes.c_long
    return library
