"""Ranks that somebody's own torchrun started: one that dies takes all with it, and torchrun says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ranks import toys


@pytest.fixture
def torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], subprocess.Popen[str]]:
    monkeypatch.delenv("OMP_NUM_THREADS")

    def start(seconds: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", toys.__file__]
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, str(tmp_path), str(seconds)], stdout=pipe, stderr=pipe, text=True)

    return start


@pytest.mark.parametrize("victim", ["rank 1", "torchrun"])
def test_sigkill(victim: str, torchrun: Callable[[int], subprocess.Popen[str]], tmp_path: Path) -> None:
    with torchrun(60) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        ranks = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
        began = time.monotonic()
        os.kill(ranks[1] if victim == "rank 1" else run.pid, signal.SIGKILL)
        toys.wait_until_dead([run.pid, *ranks])
        _, errors = run.communicate(timeout=5)
        assert time.monotonic() - began < 5
        assert run.returncode == (1 if victim == "rank 1" else -signal.SIGKILL)
    if victim == "rank 1":
        assert f"(pid: {ranks[1]})" in errors and "local_rank: 1" in errors and "SIGKILL" in errors, errors


def test_rank_0_that_leaves_without_closing(torchrun: Callable[[int], subprocess.Popen[str]]) -> None:
    with torchrun(0) as run:
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 0, errors
