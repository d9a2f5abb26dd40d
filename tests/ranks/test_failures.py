"""A rank, or the process that started them, goes at any moment: everybody goes, and who is left says why."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atb_models.errors import RankError
from atb_models.ranks import group as ranks_module
from atb_models.ranks.group import RankGroup
from atb_models.ranks.spawn import spawn
from tests.ranks import toys

SERVE = "tests.ranks.toys:serve"


def _killed_in_a_sum(group: RankGroup, pid: int) -> None:
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    toys.lead_step(group, 60)


def _killed_while_idle(group: RankGroup, pid: int) -> None:
    others = toys.children()
    os.kill(pid, signal.SIGKILL)
    toys.wait_until_dead(others)  # the other rank goes though nobody calls the group
    toys.lead_step(group)


@pytest.mark.parametrize("scene, when", [(_killed_in_a_sum, "while computing a"), (_killed_while_idle, "while idle")])
def test_killed_rank(scene: Callable[[RankGroup, int], None], when: str) -> None:
    with spawn(3, "cpu", "", SERVE) as group:
        toys.lead_step(group)
        ranks, began = toys.children(), time.monotonic()
        with pytest.raises(RankError, match=rf"rank 2 \(pid \d+\) was killed by signal 9 \(SIGKILL\) {when}"):
            scene(group, _pid_of(2, ranks))
        toys.wait_until_dead(ranks, 1.0)
        assert time.monotonic() - began < 5
        with pytest.raises(RankError, match="SIGKILL"):
            group.check()
    toys.wait_until_dead(ranks, 0)


def _pid_of(rank: int, pids: list[int]) -> int:
    entry = f"RANK={rank}".encode()
    return next(pid for pid in pids if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def test_killed_while_ranks_meet() -> None:
    seen: list[int] = []

    def kill_one() -> None:
        while len(seen) < 2:
            seen[:] = toys.children()
        os.kill(seen[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    began = time.monotonic()
    with pytest.raises(RankError, match=r"rank [12] .*\(SIGKILL\) while starting the ranks"):
        spawn(3, "cpu", "", SERVE)
    assert time.monotonic() - began < 5
    killer.join()
    toys.wait_until_dead(seen, 0)


@pytest.mark.parametrize("payload, message", [("file x: no tensor y", "CheckpointError: file x: no t"), ("", "a bug")])
def test_error_in_a_rank(payload: str, message: str) -> None:
    """The user's mistake in one line, our own with its traceback."""
    with spawn(2, "cpu", payload, "tests.ranks.toys:fail") as group:
        with pytest.raises(RankError, match=rf"^rank 1 \(pid \d+\): (.|\n)*{message}") as caught:
            group.barrier("loading")
    assert ("in fail" in str(caught.value)) == (payload == "")


def test_rank_that_lives_and_never_finishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "BARRIER_TIMEOUT_S", 0.3)
    with spawn(3, "cpu", "", SERVE) as group:
        group.send_step(np.array([60], dtype=np.int32))  # the others sleep
        with pytest.raises(RankError, match=r"^rank 1, 2 has not finished loading 0\.3 s after rank 0$"):
            group.barrier("loading")


def test_group_that_is_dropped() -> None:
    """It takes its ranks along; a copy of it in a forked process does not."""
    group = spawn(2, "cpu", "", SERVE)
    ranks = toys.children()
    if (fork := os.fork()) == 0:
        group.close()
        os._exit(0)
    os.waitpid(fork, 0)
    toys.lead_step(group)
    del group
    gc.collect()
    toys.wait_until_dead(ranks, 0)


def test_rank_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for as long as said, then killed."""
    monkeypatch.setattr(ranks_module, "CLOSE_TIMEOUT_S", 0.5)
    group = spawn(2, "cpu", "", SERVE)
    (rank,) = toys.children()
    group.send_step(np.array([60], dtype=np.int32))
    began = time.monotonic()
    group.close()
    assert 0.5 < time.monotonic() - began < 2
    toys.wait_until_dead([rank], 0)


PARENT = """
import os, sys, time
from atb_models.ranks.spawn import spawn
from tests.ranks.toys import children, lead_step

def start():
    return spawn(2, "cpu", "", "tests.ranks.toys:serve")

def say(word):
    print(word, *children(), flush=True)

{body}
"""
INTERRUPTED_THEN_KILLED = """
try:
    with start() as group:
        say("first")
        lead_step(group, 60)
except KeyboardInterrupt:
    say("interrupted")
with start() as group:
    say("second")
    time.sleep(60)
"""
UNRESPONSIVE = """
with start() as group:
    with group.doing("loading weights"):
        os.kill(children()[0], 9)
        time.sleep(60)
"""


def _parent(body: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PARENT.replace("{body}", body)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def _said(parent: subprocess.Popen[str], word: str) -> list[int]:
    """The pids on the parent's next line, which begins with this word."""
    assert parent.stdout is not None
    line = parent.stdout.readline().split()
    assert line and line[0] == word
    return [int(pid) for pid in line[1:]]


def test_interrupted_then_killed_parent() -> None:
    """Ctrl-C ends the ranks and only rank 0 notices; a second group follows; SIGKILL of the parent ends that."""
    with _parent(INTERRUPTED_THEN_KILLED) as parent:
        (rank,) = _said(parent, "first")
        assert os.getsid(rank) == rank, "a terminal's Ctrl-C must not reach it"
        time.sleep(0.2)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        assert _said(parent, "interrupted") == []
        toys.wait_until_dead([rank], 0)
        (rank,) = _said(parent, "second")
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        toys.wait_until_dead([rank])
        assert parent.stderr is not None and parent.stderr.read() == ""


def test_main_thread_that_cannot_be_interrupted() -> None:
    """Where no wait of ours can raise the error, the process ends by itself and says why."""
    with _parent(UNRESPONSIVE) as parent:
        _, errors = parent.communicate(timeout=30)
        assert parent.returncode == 1
    assert "rank 1" in errors and "(SIGKILL) while loading weights" in errors, errors
