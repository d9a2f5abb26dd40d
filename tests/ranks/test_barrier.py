"""The barrier itself, with threads in place of processes: they share memory and sleep on futexes just the same."""

from __future__ import annotations

import _thread
import mmap
import threading
import time

import pytest

from atb_models.ranks import barrier as module
from atb_models.ranks.barrier import Barrier

MEETINGS = 3000


def _barriers(size: int, spins: int = 0) -> list[Barrier]:
    memory = mmap.mmap(-1, 4096)
    return [Barrier(memory, 0, size, spins=spins, patience=0.1) for _ in range(size)]


@pytest.mark.parametrize("size, spins", [(1, 0), (2, 0), (5, 0), (3, 20)])
@pytest.mark.parametrize("ordered", [True, False], ids=["x86", "other machines"])
def test_nobody_is_ahead(size: int, spins: int, ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each meeting every thread finds all others at the same meeting, or at most at the next one's door."""
    monkeypatch.setattr(module, "_ORDERED_MEMORY", ordered)
    reached, wrong = [0] * size, []

    def run(rank: int, barrier: Barrier) -> None:
        for meeting in range(1, MEETINGS // size):
            reached[rank] = meeting
            barrier.wait(lambda: None)
            if not set(reached) <= {meeting, meeting + 1}:
                wrong.append((meeting, list(reached)))

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(_barriers(size, spins))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_interrupt_wakes_at_once() -> None:
    barrier, failure = _barriers(2)[0], threading.Event()

    def idle() -> None:
        if failure.is_set():
            raise InterruptedError

    def fail() -> None:
        failure.set()
        barrier.interrupt()

    threading.Timer(0.02, fail).start()
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        barrier.wait(idle)
    assert time.monotonic() - began < module.SHORT_PAUSE_S


def test_signal_handlers_run() -> None:
    barrier = _barriers(2)[0]
    threading.Timer(0.2, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        barrier.wait(lambda: None)


def test_machine_without_a_known_futex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SYS_FUTEX", None)
    with pytest.raises(OSError, match="x86_64 or aarch64"):
        _barriers(1)
