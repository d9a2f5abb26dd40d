"""What one rank knows about the others: whether the group still works, and what the ranks are doing."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from atb_models.errors import RankError
from atb_models.ranks.lifetime import is_dead


class Health:
    """Shared by a group, its transports and the thread that watches the ranks.

    activity: what the ranks are doing together; None between two such sections. reported: set once the failure was
    raised to the caller. closing: the other ranks may end. interrupts: each wakes a thread that waits for other ranks.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.activity: str | None = None
        self.reported = threading.Event()
        self.closing = False
        self._end_by = math.inf
        self.interrupts: list[Callable[[], None]] = []
        self._failed = threading.Event()
        self._peers: Mapping[int, int] = {}

    def fail(self, message: str) -> None:
        """Mark the group as failed; the first reason is kept."""
        if self.failure is None:
            self.failure = message
        self._failed.set()
        for interrupt in self.interrupts:
            interrupt()

    def check(self) -> None:
        """Raise RankError if the group has failed."""
        if self.closing and time.monotonic() > self._end_by:
            self.fail("the other ranks did not end in time")
        if self.failure is not None:
            self.reported.set()
            raise RankError(self.failure)

    def expect_end(self, timeout: float) -> None:
        """From now on ranks may end; waiting for one longer than `timeout` seconds fails."""
        self.closing, self._end_by = True, time.monotonic() + timeout

    def wait_for_failure(self, timeout: float) -> None:
        """Raise RankError once the group has failed; return if that does not happen in `timeout` seconds."""
        self._failed.wait(timeout)
        self.check()

    def watch(self, peers: Mapping[int, int]) -> None:
        """Let `look` check these processes (rank -> pid on this host), which no thread of this process watches."""
        self._peers = peers

    def look(self) -> None:
        """Raise RankError if a watched process has ended."""
        for rank, pid in self._peers.items():
            if is_dead(pid):
                self.fail(f"rank {rank} (pid {pid}) ended {self.during()}")
        self.check()

    def during(self) -> str:
        return f"while {self.activity}" if self.activity else "while idle"

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """A section in which the ranks act together. An exception that leaves it puts them out of step."""
        self.check()
        before, self.activity = self.activity, activity
        try:
            yield
        except BaseException as error:
            self.fail(f"the ranks are out of step since {type(error).__name__} {self.during()}: {error}")
            raise
        finally:
            self.activity = before
