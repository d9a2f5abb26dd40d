"""Ctrl-C while the main program imports torch, whose C++ loses the signal or turns it into a traceback."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_ends_at_once() -> Iterator[None]:
    """SIGINT has its default action within the block: the process ends, with nothing to clean up yet.

    Nothing changes where Python's own handler is not in place: SIGINT may be ignored, or a rank's.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
