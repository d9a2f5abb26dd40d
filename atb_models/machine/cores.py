"""How many threads a rank should compute with."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from threading import RLock

from atb_models.env import TORCHRUN_ID, is_set
from atb_models.machine.cgroup import OWN, ROOT, cgroup_folders

_THREADS = "OMP_NUM_THREADS"


def available_cores() -> int:
    """Cores that this process may use: those of its affinity mask, but not more than its cgroups' CPU quota."""
    return max(1, math.floor(min(float(len(os.sched_getaffinity(0))), _cgroup_cores())))


def used_cores(ranks_here: int) -> int:
    """Cores that `ranks_here` ranks of this host compute on, with the number of threads that the user chose, if any."""
    if not _user_chose_threads():
        return available_cores()
    import torch

    return min(available_cores(), torch.get_num_threads() * ranks_here)


class _ThreadClaims:
    """How many threads the open groups of this process want. torch has one number for all, so the least counts."""

    def __init__(self) -> None:
        self._lock = RLock()  # a group that is garbage collected gives up its claim in any thread, in this one too
        self._claims: list[int] = []
        self._without = 0  # torch's number where nobody claims one
        self._set = 0  # the number set here last; another one found later is the user's choice

    def add(self, threads: int) -> None:
        with self._lock:
            self._notice(first=not self._claims)
            self._claims.append(threads)
            self._apply()

    def remove(self, threads: int) -> None:
        with self._lock:
            self._notice()
            self._claims.remove(threads)
            self._apply()

    def _notice(self, *, first: bool = False) -> None:
        import torch  # not at the top: the launcher counts cores without torch

        if first or torch.get_num_threads() != self._set:
            self._without = torch.get_num_threads()

    def _apply(self) -> None:
        import torch

        self._set = min([self._without, *self._claims])
        torch.set_num_threads(self._set)


_CLAIMS = _ThreadClaims()


def claim_threads(ranks_here: int) -> Callable[[], None]:
    """Let torch use this rank's share of the cores at most, at least one thread, until the returned function is called.

    What the user chose stands: OMP_NUM_THREADS, and fewer threads by torch.set_num_threads.
    """
    if _user_chose_threads():
        return lambda: None
    threads = max(1, available_cores() // ranks_here)
    _CLAIMS.add(threads)
    return lambda: _CLAIMS.remove(threads)


def _user_chose_threads() -> bool:
    """torchrun sets OMP_NUM_THREADS=1 if it is unset; the environment that torchrun was started with shows whether.

    Not by env.get: OpenMP reads the variable and accepts forms that env.get refuses, such as "4,2".
    """
    if not is_set(_THREADS):
        return False
    if not is_set(TORCHRUN_ID) or os.environ[_THREADS] != "1":
        return True
    try:
        started_with = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(f"{_THREADS}=".encode()) and not entry.endswith(b"=") for entry in started_with)


def _cgroup_cores(root: Path = ROOT, own: Path = OWN) -> float:
    """The lowest CPU limit of this process's cgroups and those above them (v2 cpu.max, v1 cfs quota), or infinity."""
    return min(map(_limit, cgroup_folders("cpu", root, own)), default=math.inf)


def _limit(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except (OSError, ValueError):
        return math.inf
    return int(quota) / int(period) if quota not in ("max", "-1") else math.inf
