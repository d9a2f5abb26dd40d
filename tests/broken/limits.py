"""What reading one broken file may take: seconds and memory."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import FrameType

MOST_S, MOST_BYTES = 10, 1 << 30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def limits() -> Iterator[None]:
    """Fails what takes more than MOST_S seconds, or MOST_BYTES beyond what was resident before."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still at work after {MOST_S} s")

    CLEAR.write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    handler = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(MOST_S)
    started = perf_counter()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert perf_counter() - started < MOST_S
    assert resident("VmHWM") - before < MOST_BYTES


def resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert match is not None
    return int(match[1]) << 10
