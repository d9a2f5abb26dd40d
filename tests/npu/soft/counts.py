"""What happened on the pretend device since the last `reset`: operators, copies, graphs, and when the host waited."""

from __future__ import annotations

import ctypes
from collections import Counter
from functools import cache

OPERATORS: Counter[str] = Counter()  # calls of the host, by their names in torch, as npu::npu_swiglu or aten::mm
COPIES: Counter[str] = Counter()  # "to_host", "to_device"
GRAPHS: Counter[str] = Counter()  # "captured", "replayed", "updated" operators
in_capture = False  # set by graphs.py
_waits: Counter[str] = Counter()


def waited(why: str) -> None:
    """The host needs a result of the device before it can go on."""
    _count(_waits, why)


def copied(where: str) -> None:
    _count(COPIES, where)


def _count(counter: Counter[str], what: str) -> None:
    if in_capture:
        raise RuntimeError(f"{what}: a graph capture takes neither copies nor waiting")
    counter[what] += 1


def waits() -> Counter[str]:
    """Times the host waited, by reason; "synchronize" are explicit ones, of streams, devices and events."""
    return _waits + Counter({"synchronize": library().soft_npu_synchronisations()})


def reset() -> None:
    for counter in (OPERATORS, COPIES, GRAPHS, _waits):
        counter.clear()
    library().soft_npu_reset()


@cache
def library() -> ctypes.CDLL:
    library = ctypes.CDLL("libascendcl.so")
    library.soft_npu_synchronisations.restype = ctypes.c_long
    return library
