"""Generated programs, each run in a process of its own without network, rights or a place to write to.

util-linux' `unshare` gives the process namespaces of its own for processes, mounts, network and IPC; jail.py does the
rest inside. All of it ends with the first process of the namespaces, whatever the program has started.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from atb_models.errors import ConfigError

SECONDS = 3.0
MEMORY_BYTES = 512 << 20
START_SECONDS = 60.0  # for the sandbox itself, on a machine that is busy with something else
PASSED = "passed"
_JAIL = Path(__file__).with_name("jail.py")
_NAMESPACES = ("--pid", "--fork", "--kill-child", "--mount", "--propagation=private", "--net", "--ipc")


def run_program(program: str, *, seconds: float = SECONDS, memory: int = MEMORY_BYTES) -> str:
    """Run `program` in the sandbox -> "passed" when it ran through, else why not.

    That is the name of the exception it ended with, "timed out" after `seconds`, or "ended early" when it left or was
    ended before its last line. memory: bytes that each of its processes may address. Raises ConfigError where this
    machine cannot make the sandbox; then nothing was run.
    """
    token = secrets.token_hex()
    job = {"program": program, "seconds": seconds, "memory": memory, "token": token, "as_nobody": os.geteuid() == 0}
    with tempfile.TemporaryDirectory(prefix="modeltest_") as folder, open(os.devnull, "r+b") as nowhere:
        job.update(folder=os.path.realpath(folder), nowhere=nowhere.fileno())
        process = subprocess.Popen(
            [*_unshare(), sys.executable, "-I", "-S", str(_JAIL)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[nowhere.fileno()],
            start_new_session=True,
        )
        try:
            said, why = process.communicate(json.dumps(job), timeout=seconds + START_SECONDS)
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"the sandbox did not start within {START_SECONDS:g} s; is the machine overloaded?"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    if process.returncode:
        raise ConfigError(_refusal(why))
    said = said.rstrip("\n")
    if said == token:
        return PASSED
    return said if said != PASSED else f"exception {PASSED}"


def check_sandbox() -> None:
    """Raises ConfigError where this machine cannot make the sandbox."""
    outcome = run_program("pass")
    if outcome != PASSED:
        raise ConfigError(_refusal(f"an empty program {outcome}"))


def _unshare() -> list[str]:
    """The command that makes the namespaces; a user who is not root gets a user namespace for it."""
    unshare = shutil.which("unshare")
    if unshare is None:
        raise ConfigError(_refusal("there is no unshare"))
    return [unshare, *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), *_NAMESPACES]


def _refusal(why: str) -> str:
    """why: of several lines, the last tells."""
    last = (why.strip() or "no reason given").split("\n")[-1]
    return (
        f"generated code cannot be shut off on this machine ({last}),"
        " so it is not run; use a host, or a container with SYS_ADMIN, where `unshare --net --pid --mount` works"
    )
