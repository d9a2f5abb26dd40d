"""How many cores a rank counts and how many threads it takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atb_models.machine import cores


@pytest.mark.parametrize(
    "own, files, expected",
    [
        ("0::/pod/job\n", {"pod/cpu.max": "350000 100000", "pod/job/cpu.max": "max 100000"}, 3.5),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("3:cpu,cpuacct:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2),
        ("3:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("3:memory:/a\n", {"cpu/a/cpu.cfs_quota_us": "1\n", "cpu/a/cpu.cfs_period_us": "1\n"}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_cgroup_limits(own: str, files: dict[str, str], expected: float, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    assert cores._cgroup_cores(tmp_path / "fs", tmp_path / "own") == expected


def test_affinity_counts() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores.available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """An even share, at least one; the user's OMP_NUM_THREADS stands, but not the 1 that torchrun sets by itself."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    try:
        for variable, ranks, threads in ((None, 2, 4), (None, 16, 1), ("3", 2, 7)):
            torch.set_num_threads(7)
            monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
            if variable:
                monkeypatch.setenv("OMP_NUM_THREADS", variable)
            cores.set_threads(ranks)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("users", [True, False])
def test_torchrun_sets_one_thread_by_itself(users: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = "from atb_models.machine import cores; print(cores._user_chose_threads())"
    torchrun = (
        "import os, subprocess, sys; os.environ.update(TORCHELASTIC_RUN_ID='none', OMP_NUM_THREADS='1')\n"
        f"subprocess.run([sys.executable, '-c', {ask!r}])"
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if users:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ended = subprocess.run([sys.executable, "-c", torchrun], capture_output=True, text=True, timeout=20)
    assert ended.stdout == f"{users}\n", ended.stderr
