"""Programs that start ranks, watched from outside: their processes and what they say."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from atb_models.ranks.lifetime import is_dead

SCRIPT = "examples/models/deepseek/run_pa_deepseek_moe.sh"
_MARK = "TEST_PROCESS_MARK"


def any_port() -> int:
    """One that the system gives to nobody else for a while: of other runs on this machine few will meet it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Program:
    """A process group of its own, as a terminal's foreground job is one. Leaving it kills what is left of it."""

    def __init__(self, command: list[str], folder: Path, **environ: str) -> None:
        """`folder`: where it runs, and where its output is kept. `environ` is added to this process's."""
        self.folder, self._mark = folder, secrets.token_hex(8)
        self._out, self._err = folder / f"stdout-{self._mark}", folder / f"stderr-{self._mark}"
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**os.environ, **environ, _MARK: self._mark},
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8", "replace")

    def environs(self) -> dict[int, dict[str, str]]:
        """The living processes that descend from the program, whatever their session or parent."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and not is_dead(int(entry.name)):
                environ = _environ(entry)
                if environ.get(_MARK) == self._mark:
                    found[int(entry.name)] = environ
        return found

    def ranks(self) -> dict[int, int]:
        """rank -> pid of the processes that were started as ranks."""
        return {int(environ["RANK"]): pid for pid, environ in self.environs().items() if "RANK" in environ}

    def wait_until(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        """The program must be running until then."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.err
            time.sleep(0.05)

    def finish(self, timeout: float = 120) -> tuple[int, str, str]:
        """Status, output, errors; the program and all it started must end in time."""
        end = time.monotonic() + timeout
        status = self.process.wait(timeout)
        while left := self.environs():
            assert time.monotonic() < end, f"{left.keys()} left after {timeout} s\n{self.err}"
            time.sleep(0.02)
        return status, self.out, self.err

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pid in self.environs():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def start_script(root: Path, folder: Path, *argv: str, ranks: int = 2, **environ: str) -> Program:
    """The launch script, from another folder."""
    devices = ",".join(map(str, range(ranks)))
    environ = {"PYTHON": sys.executable, "ASCEND_RT_VISIBLE_DEVICES": devices, "OMP_NUM_THREADS": "1", **environ}
    return Program(["bash", str(root / SCRIPT), *argv], folder, **environ)


def run_script(root: Path, folder: Path, *argv: str, ranks: int = 2, **environ: str) -> tuple[int, str, str]:
    """The launch script from its start to its end: status, output, errors."""
    with start_script(root, folder, *argv, ranks=ranks, **environ) as program:
        return program.finish()


def unlogged(err: str) -> list[str]:
    """What is on stderr beside the log and the progress bar."""
    lines = re.split(r"[\r\n]+", err)
    return [line for line in lines if line.strip() and not re.match(r"\[\d{4}-|loading weights: ", line)]


def _environ(entry: Path) -> dict[str, str]:
    try:
        words = (entry / "environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:  # it has ended, or is another user's
        return {}
    return {name: value for name, _, value in (word.partition("=") for word in words)}
