"""How many cores a rank counts and how many threads it takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the number of threads as a user does, on 8 cores; afterwards all is as before, and no claim is left."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    monkeypatch.setattr(cores, "_CLAIMS", claims := cores._ThreadClaims())
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield torch.set_num_threads
    assert claims._claims == []
    torch.set_num_threads(before)


@pytest.mark.parametrize(("ranks", "expected"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_a_rank_claims_its_share_of_the_cores(threads: Callable[[int], None], ranks: int, expected: int) -> None:
    """At least one thread; torch's own number comes back."""
    threads(11)
    release = cores.claim_threads(ranks)
    assert torch.get_num_threads() == expected
    release()
    assert torch.get_num_threads() == 11


def test_what_the_user_chose_stands(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    threads(3)
    release = cores.claim_threads(1)
    assert torch.get_num_threads() == 3  # fewer than the cores
    threads(2)
    release()
    assert torch.get_num_threads() == 2  # chosen while the rank computed
    monkeypatch.setenv("OMP_NUM_THREADS", "11")
    threads(11)
    cores.claim_threads(2)
    assert torch.get_num_threads() == 11


def test_claims_may_end_in_any_order(threads: Callable[[int], None]) -> None:
    """The least of the open groups counts, and none puts back what another has set."""
    threads(11)
    first = cores.claim_threads(1)
    second = cores.claim_threads(4)
    assert torch.get_num_threads() == 2
    first()
    assert torch.get_num_threads() == 2
    third = cores.claim_threads(2)
    second()
    assert torch.get_num_threads() == 4
    third()
    assert torch.get_num_threads() == 11


QUOTA = """
import torch
from atb_models.machine import cores
cores._cgroup_cores = lambda *a: 1.0
torch.set_num_threads({chosen})
from atb_models import LLM
if __name__ == "__main__":
    options = dict(device="cpu", kv_blocks=4, max_seq_len=128, max_batch_size=1, tp={tp})
    with LLM(**options) as llm:
        print(torch.get_num_threads())
        with LLM(**options):
            pass
        print(torch.get_num_threads())
    print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("tp", "omp", "chosen", "expected"),
    [(1, None, 2, "1 1 2"), (2, None, 2, "1 1 2"), (1, "2", 2, "2 2 2"), (1, None, 1, "1 1 1"), (1, "", 2, "1 1 2")],
)
def test_an_llm_keeps_to_the_quota_of_its_container(
    tp: int, omp: str | None, chosen: int, expected: str, tmp_path: Path, root: Path
) -> None:
    """One core is granted, however many the machine has; with one rank as with several."""
    (tmp_path / "program.py").write_text(QUOTA.format(tp=tp, chosen=chosen))
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environ |= {"PYTHONPATH": str(root)} | ({} if omp is None else {"OMP_NUM_THREADS": omp})
    command = [sys.executable, str(tmp_path / "program.py")]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split() == expected.split(), ended.stderr


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
