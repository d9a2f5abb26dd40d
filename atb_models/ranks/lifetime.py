"""Ends a rank with the process that started it. Without torch: a rank calls this before its slow imports."""

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
    """Let the kernel kill this process when its parent ends. In a process that is no rank: do nothing, return False.

    A process is a rank when `launcher_pid` is given, ATB_LAUNCHER_PID names another process, or torchrun started it.
    Exits with status 1 if the launcher has already ended. SIGINT gets its default action, which SIGTERM has anyway: a
    Python handler runs only after a long operation returns, and every rank would print a traceback.
    """
    # Not by env.get, which raises for a bad value: it is too early to report an error, and such a value is no pid.
    if launcher_pid is None and os.environ.get(LAUNCHER_PID, "").isdigit():
        launcher_pid = int(os.environ[LAUNCHER_PID])
    if launcher_pid == os.getpid() or (launcher_pid is None and not is_set(TORCHRUN_ID)):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # If the parent died before the prctl, no signal comes. Compare pids instead of testing for parent 1: in a container
    # the launcher itself may be process 1.
    if launcher_pid is not None and not _is_ancestor(launcher_pid):
        sys.stderr.write(f"the launcher of this rank (pid {launcher_pid}, {LAUNCHER_PID}) has ended, and so does it\n")
        sys.stderr.flush()
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def child_environment() -> dict[str, str]:
    """Environment of a child process that runs a module of this package, wherever the package was imported from."""
    environment = dict(os.environ)
    environment["PYTHONSAFEPATH"] = "1"  # without it, -m looks for modules in the working folder first
    # A rank imports torch_npu itself if it computes on an NPU.
    environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = environment.get("TORCH_DEVICE_BACKEND_AUTOLOAD") or "0"
    # Not for an installed package: site-packages before the standard library could hide its modules.
    home = str(Path(__file__).resolve().parents[2])
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    return environment


def process_state(pid: int) -> tuple[str, int] | None:
    """State letter (proc(5): R, S, Z ...) and parent of a process; None when there is no such process."""
    try:
        # The name in the second field may contain blanks and parentheses; nothing after its last ")" does.
        state, parent = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return state, int(parent)


def is_dead(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    state = process_state(pid)
    return state is None or state[0] in "ZX"


def _is_ancestor(pid: int) -> bool:
    """Whether `pid` is an ancestor of this process; not only its parent, as a wrapper script may stand between."""
    parent = os.getppid()
    while parent != pid and parent > 1:
        state = process_state(parent)
        parent = state[1] if state else 0
    return parent == pid
