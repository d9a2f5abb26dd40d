"""Ranks live no longer than what started them. Imports no torch: a rank calls this before anything that takes time."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import sysconfig
from pathlib import Path

from atb_models.env import TORCHRUN_ID, is_set

# The process that started the ranks: exported by the launch script, which execs torchrun and so keeps its pid, and by
# `spawn` in the environment of its ranks.
LAUNCHER_PID = "ATB_LAUNCHER_PID"

_PR_SET_PDEATHSIG = 1


def die_with_parent(launcher_pid: int | None = None) -> bool:
    """Have the kernel kill this process when its parent ends; for ranks only, else it does nothing and returns False.

    A process is a rank when `launcher_pid` is given, ATB_LAUNCHER_PID names another process, or torchrun started it.
    Exits with status 1 when the launcher is gone already. SIGINT gets its default action, as SIGTERM has it: a Python
    handler would have to wait for a long operation to return, and every rank would print a traceback.
    """
    # Not env.get: a value that is no pid names no launcher, and this is too early to report an error.
    if launcher_pid is None and os.environ.get(LAUNCHER_PID, "").isdigit():
        launcher_pid = int(os.environ[LAUNCHER_PID])
    if launcher_pid == os.getpid() or (launcher_pid is None and not is_set(TORCHRUN_ID)):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the prctl sends no signal any more. Its pid tells, not "the parent is 1 now": in a
    # container the launcher itself may be pid 1.
    if launcher_pid is not None and not _is_ancestor(launcher_pid):
        sys.stderr.write(f"the launcher of this rank (pid {launcher_pid}, {LAUNCHER_PID}) is gone; the rank ends\n")
        sys.stderr.flush()
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def child_environment() -> dict[str, str]:
    """The variables of a process that runs a module of this package, from wherever this one was imported."""
    environment = dict(os.environ)
    environment["PYTHONSAFEPATH"] = "1"  # else -m puts the working folder first, with whatever modules it holds
    environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # a rank imports torch_npu itself, where it computes on it
    # Not when installed: site-packages ahead of the standard library could shadow it.
    home = str(Path(__file__).resolve().parents[2])
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    return environment


def process_state(pid: int) -> tuple[str, int] | None:
    """State letter (proc(5): R, S, Z ...) and parent of a process; None when there is no such process."""
    try:
        # The name in the second field may hold blanks and parentheses; what follows its last ")" does not.
        state, parent = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return state, int(parent)


def is_dead(pid: int) -> bool:
    """Whether a process has ended, be it reaped or a zombie."""
    state = process_state(pid)
    return state is None or state[0] in "ZX"


def _is_ancestor(pid: int) -> bool:
    """Whether `pid` is this process's parent, or further up where the launcher ran us through a wrapper script."""
    parent = os.getppid()
    while parent != pid and parent > 1:
        state = process_state(parent)
        parent = state[1] if state else 0
    return parent == pid
