"""Ranks under torchrun, with a stand-in for run_pa.py that needs no torch: how a run ends, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atb_models.launcher.port import PORTS, is_free

STAND_IN = """
import json, os, sys, time
sys.path.insert(0, {root!r})
from atb_models.engine.lifetime import die_with_parent
die_with_parent()
from atb_models.launcher.exit_status import run_guarded
from atb_models.errors import ConfigError, RankError
rank = int(os.environ["RANK"])
with open(f"{folder}/rank{{rank}}", "w") as stream:
    json.dump([os.getpid(), sys.argv[1:], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]], stream)
os.rename(f"{folder}/rank{{rank}}", f"{folder}/rank{{rank}}.json")
def program():
{body}
sys.exit(run_guarded(program))
"""
LAUNCH = """
import os, sys
from pathlib import Path
os.environ["ATB_LAUNCHER_PID"] = str(os.getpid())
from atb_models.launcher import torchrun
torchrun.ROOT = Path({folder!r})
sys.exit(torchrun.run_ranks({count}, "127.0.0.1", {port}, {argv!r}))
"""
SLEEP = "time.sleep(60)"


class Run:
    """A launcher in a process of its own."""

    def __init__(self, root: Path, folder: Path, body: str, count: int, argv: list[str]) -> None:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (folder / "run_pa.py").write_text(STAND_IN.format(root=str(root), folder=folder, body=lines))
        self.port = next(number for number in reversed(PORTS) if is_free(number))
        program = LAUNCH.format(folder=str(folder), count=count, port=self.port, argv=argv)
        self.folder, self.count = folder, count
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def ranks(self) -> list[list]:
        """What each rank has recorded, once all have."""
        paths = [self.folder / f"rank{rank}.json" for rank in range(self.count)]
        end = time.monotonic() + 60
        while not all(path.exists() for path in paths):
            assert time.monotonic() < end and self.process.poll() is None, "the ranks did not start"
            time.sleep(0.05)
        return [json.loads(path.read_text()) for path in paths]

    def end(self) -> tuple[int, list[str]]:
        """Status and error lines; all ranks must be gone within 5 s and the port free."""
        pids = [record[0] for record in self.ranks()]
        started = time.monotonic()
        _, error = self.process.communicate(timeout=10)
        while any(map(is_running, pids)) or time.monotonic() > started + 5:
            assert time.monotonic() < started + 5, "a rank is left"
            time.sleep(0.05)
        assert is_free(self.port)
        return self.process.returncode, error.splitlines()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def start(root, tmp_path):
    runs = []

    def start(body, count=2, argv=()):
        runs.append(Run(root, tmp_path, body, count, list(argv)))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


def test_ranks_get_the_arguments_as_typed(start):
    argv = ["/a b", "--input_texts", "it's $5, $$ and ${local_rank}", "", "--", "-x"]
    run = start("pass", argv=argv)
    run.process.wait(60)
    seen = [json.loads((run.folder / f"rank{rank}.json").read_text())[1:] for rank in range(2)]
    assert (run.process.returncode, run.process.stderr.read()) == (0, "")
    assert seen == [[argv, "2", str(run.port)]] * 2


def test_same_error_of_all_ranks_is_said_once(start):
    status, lines = ended(start('raise ConfigError("8 heads, 3 ranks")'))
    assert (status, lines) == (2, ["atb-models: error: 8 heads, 3 ranks"])


def test_error_of_another_rank_names_it(start):
    body = f'if rank == 1: raise ConfigError("mine")\n{SLEEP}'
    assert ended(start(body)) == (2, ["atb-models: error: rank 1: mine"])


def test_consequences_are_left_out(start, tmp_path):
    body = f"""
import pathlib
seen = pathlib.Path({str(tmp_path / "seen")!r})
if rank == 1:
    seen.touch()
    raise ConfigError("cause")
while not seen.exists(): time.sleep(0.01)
raise RankError("rank 1 ended")
"""
    assert ended(start(body)) == (2, ["atb-models: error: rank 1: cause"])


def test_status_of_a_rank_that_says_nothing(start):
    status, lines = ended(start(f"if rank == 1: os._exit(7)\n{SLEEP}"))
    assert status == 7
    assert lines[0].startswith("atb-models: error: rank 1 (pid ") and lines[0].endswith(") ended with status 7")


def test_killed_rank_is_named(start):
    run = start(SLEEP, count=3)
    pid = run.ranks()[2][0]
    os.kill(pid, signal.SIGKILL)
    status, lines = run.end()
    assert status == 1
    killed = f"atb-models: error: rank 2 (pid {pid}) was killed by signal 9 (SIGKILL)"
    assert lines == [f"{killed}; the kernel does that when memory runs out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_launcher_ends_all(start, number):
    run = start(SLEEP)
    run.ranks()
    run.process.send_signal(number)
    status, lines = run.end()
    assert (status, lines) == (128 + number, [f"atb-models: error: stopped by {number.name}; all ranks are ended"])


def test_killed_launcher_ends_all(start):
    run = start(SLEEP)
    run.ranks()
    run.process.kill()
    assert run.end()[0] == -signal.SIGKILL


def ended(run: Run) -> tuple[int, list[str]]:
    _, error = run.process.communicate(timeout=60)
    assert is_free(run.port)
    return run.process.returncode, error.splitlines()


def test_port_taken_between_look_and_start(root, tmp_path):
    """torchrun's own failure to listen is told apart, so that the launcher can try another port."""
    import socket

    port = next(number for number in reversed(PORTS) if is_free(number))
    program = (
        "from atb_models.launcher import torchrun\n"
        f"try:\n    torchrun.run_ranks(1, '127.0.0.1', {port}, [])\n"
        "except torchrun.PortTaken:\n    print('taken')"
    )
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True):
        ended = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "taken\n"
