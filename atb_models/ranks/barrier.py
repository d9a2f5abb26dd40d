"""A barrier between processes on one host: a counter in shared memory and Linux futexes, called through ctypes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from collections.abc import Callable

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
# x86 keeps the order of loads and of stores; the others need the kernel's barrier, see `Barrier`.
_ORDERED_MEMORY = platform.machine() == "x86_64"
_WAIT, _WAKE, _WAKE_OP = 0, 1, 5
_LINE = 64  # bytes of a cache line: each word has its own
_EVERYBODY = 0x7FFFFFFF
SHORT_PAUSE_S, LONG_PAUSE_S = 0.1, 1.0


class _Timeout(ctypes.Structure):
    """struct timespec"""

    _fields_ = [("_seconds", ctypes.c_long), ("_nanoseconds", ctypes.c_long)]

    def set(self, seconds: float) -> None:
        self._seconds, self._nanoseconds = int(seconds), int(seconds % 1 * 1e9)

    @property
    def address(self) -> int:
        return ctypes.addressof(self)


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [
    ctypes.c_long,  # the number of the call
    ctypes.c_void_p,  # uaddr
    ctypes.c_int,  # operation
    ctypes.c_uint32,  # val
    ctypes.c_void_p,  # timeout, or val2 as a number
    ctypes.c_void_p,  # uaddr2
    ctypes.c_uint32,  # val3
]


class Barrier:
    """`wait` returns in every process once all of them have called it.

    Meeting e counts arrivals in word e % 3. A process that enters meeting e clears word (e + 1) % 3. That word counted
    meeting e - 2, which all processes have left, and will count meeting e + 1, which none enters before all have
    arrived at meeting e.

    Memory order (aarch64 may reorder plain loads and stores): FUTEX_WAKE_OP raises the count. It is an atomic operation
    of the kernel and its store is a release, so a process that sees the arrival also sees what was written before
    `wait`. A process that saw all arrivals by a plain load still passes the full barrier at the start of FUTEX_WAIT
    (kernel, futex/waitwake.c, "(A)") before it reads what the others wrote. No test runs this on aarch64.
    """

    BYTES = 4 * _LINE

    def __init__(self, memory: mmap.mmap, offset: int, size: int, *, spins: int, patience: float) -> None:
        """`spins`: how often to yield before sleeping. `patience`: seconds of sleep after which `idle` is called."""
        if _SYS_FUTEX is None:
            raise OSError(f"ranks on one host need x86_64 or aarch64, not {platform.machine()}")
        self._size, self._spins, self._patience = size, spins, patience
        self._words = memoryview(memory)[offset : offset + self.BYTES].cast("I")
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory, offset))
        self._addresses = [address + i * _LINE for i in range(3)]
        self._timeout = _Timeout()
        self._idle_word = address + 3 * _LINE  # always 0
        # FUTEX_OP(ADD, 1, CMP_EQ, size - 1): add 1; if the old value was size - 1, wake those who sleep on the word.
        self._arrive = (1 << 28) | (1 << 12) | (size - 1)
        self._meeting = 0

    def wait(self, idle: Callable[[], None]) -> None:
        """Wait for the others. `idle` is called between sleeps and may raise; then the barrier cannot be used again."""
        current, following = self._meeting % 3, (self._meeting + 1) % 3
        self._meeting += 1
        words, index, address = self._words, current * _LINE // 4, self._addresses[current]
        words[following * _LINE // 4] = 0
        if _syscall(_SYS_FUTEX, self._idle_word, _WAKE_OP, 0, _EVERYBODY, address, self._arrive) < 0:
            raise OSError(ctypes.get_errno(), "futex(FUTEX_WAKE_OP) failed")
        if words[index] != self._size:
            self._wait_for(index, address, idle)
        if not _ORDERED_MEMORY:
            _sleep(self._idle_word, 1, self._timeout)  # returns at once, the word is 0

    def _wait_for(self, index: int, address: int, idle: Callable[[], None]) -> None:
        words, size, spins, pause = self._words, self._size, self._spins, SHORT_PAUSE_S
        self._timeout.set(pause)
        while (arrived := words[index]) != size:
            if spins:
                spins -= 1
                os.sched_yield()
                continue
            outcome = _sleep(address, arrived, self._timeout)
            if outcome == errno.EAGAIN or words[index] == size:
                continue  # somebody has arrived since
            idle()
            if outcome == errno.ETIMEDOUT:
                pause = min(2 * pause, self._patience)
                self._timeout.set(pause)

    def interrupt(self) -> None:
        """Wake the processes that sleep in `wait`, so that `idle` is called. For another thread or a signal handler."""
        for address in self._addresses:
            _syscall(_SYS_FUTEX, address, _WAKE, _EVERYBODY, None, None, 0)


def _sleep(address: int, value: int, timeout: _Timeout) -> int:
    """Sleep while the word is `value`. Returns 0 if woken, else EAGAIN (the word differs), EINTR or ETIMEDOUT."""
    if _syscall(_SYS_FUTEX, address, _WAIT, value, timeout.address, None, 0) == 0:
        return 0
    if (code := ctypes.get_errno()) not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
        raise OSError(code, "futex(FUTEX_WAIT) failed")
    return code
