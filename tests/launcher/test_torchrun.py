"""Ranks under torchrun, with a stand-in for run_pa.py that needs no torch: how a run ends, and what is said of it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.processes import any_port, unlogged
from tests.ranks.toys import children, wait_until_dead
from tests.server.raw import wait_for

STAND_IN = """
import json, os, sys, time
sys.path.insert(0, {root!r})
from atb_models.ranks.lifetime import die_with_parent
die_with_parent()
from atb_models.command.exit_status import run_guarded
from atb_models.errors import ConfigError, RankError
rank = int(os.environ["RANK"])
with open(f"{folder}/rank{{rank}}", "w") as stream:
    json.dump([os.getpid(), sys.argv[1:], os.environ["WORLD_SIZE"], os.environ["MASTER_PORT"]], stream)
os.rename(f"{folder}/rank{{rank}}", f"{folder}/rank{{rank}}.json")
def program():
{body}
sys.exit(run_guarded(program))
"""
# One run after another: importing torchrun takes longer than they do.
LAUNCHER = """
import json, os, sys
from pathlib import Path
os.environ["ATB_LAUNCHER_PID"] = str(os.getpid())
from atb_models.launcher import torchrun
for line in sys.stdin:
    folder, count, port, argv = json.loads(line)
    torchrun.ROOT = Path(folder)
    with open(f"{folder}/stderr", "w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    print(torchrun.run_ranks(count, "127.0.0.1", port, argv), flush=True)
"""
SLEEP = "time.sleep(60)"


class Launcher:
    """A process that runs ranks whenever it is told to. A context manager, which ends it."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER], env={**os.environ, "PYTHONPATH": str(root)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()


class Run:
    """Ranks that a launcher has started, and what becomes of them."""

    def __init__(self, root: Path, folder: Path, launcher: Launcher, body: str, count: int, argv: list[str]) -> None:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (folder / "run_pa.py").write_text(STAND_IN.format(root=str(root), folder=folder, body=lines))
        self.folder, self.count, self.launcher, self.port = folder, count, launcher.process, any_port()
        assert self.launcher.stdin is not None
        self.launcher.stdin.write(json.dumps([str(folder), count, self.port, argv]) + "\n")
        self.launcher.stdin.flush()

    def records(self) -> list[list]:
        """What each rank has recorded, once all have."""
        paths = [self.folder / f"rank{rank}.json" for rank in range(self.count)]
        wait_for(lambda: all(path.exists() for path in paths))
        return [json.loads(path.read_text()) for path in paths]

    def end(self, timeout: float = 5) -> tuple[int, list[str]]:
        """Status and error lines; the launcher's processes must be gone in time."""
        assert self.launcher.stdout is not None
        assert select.select([self.launcher.stdout], [], [], timeout)[0], "the ranks have not ended"
        status = int(self.launcher.stdout.readline())
        assert children(self.launcher.pid) == []
        return status, unlogged((self.folder / "stderr").read_text())


@pytest.fixture(scope="module")
def launcher(root):
    with Launcher(root) as one:
        yield one


@pytest.fixture
def start(root, tmp_path, launcher):
    return lambda body, count=2, argv=(): Run(root, tmp_path, launcher, body, count, list(argv))


def test_ranks_get_the_arguments_as_typed(start):
    argv = ["/a b", "--input_texts", "it's $5, $$ and ${local_rank}", "", "--", "-x"]
    run = start("pass", argv=argv)
    assert run.end(60) == (0, [])
    assert [record[1:] for record in run.records()] == [[argv, "2", str(run.port)]] * 2


def test_same_error_of_all_ranks_is_said_once(start):
    status, lines = start('raise ConfigError("8 heads, 3 ranks")').end(60)
    assert (status, lines) == (2, ["atb-models: error: 8 heads, 3 ranks"])


def test_error_of_another_rank_names_it(start):
    body = f'if rank == 1: raise ConfigError("mine")\n{SLEEP}'
    assert start(body).end(60) == (2, ["atb-models: error: rank 1: mine"])


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
    assert start(body).end(60) == (2, ["atb-models: error: rank 1: cause"])


def test_status_of_a_rank_that_says_nothing(start):
    status, lines = start(f"if rank == 1: os._exit(7)\n{SLEEP}").end(60)
    assert status == 7
    assert lines[0].startswith("atb-models: error: rank 1 (pid ") and lines[0].endswith(") ended with status 7")


def test_killed_rank_is_named(start):
    run = start(SLEEP, count=3)
    pid = run.records()[2][0]
    os.kill(pid, signal.SIGKILL)
    status, lines = run.end()
    assert status == 1
    killed = f"atb-models: error: rank 2 (pid {pid}) was killed by signal 9 (SIGKILL)"
    assert lines == [f"{killed}; the kernel does that when memory runs out"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_launcher_ends_all(start, number):
    run = start(SLEEP)
    run.records()
    run.launcher.send_signal(number)
    status, lines = run.end()
    assert (status, lines) == (128 + number, [f"atb-models: error: stopped by {number.name}; all ranks are ended"])


def test_killed_launcher_ends_all(root, tmp_path):
    with Launcher(root) as launcher:
        pids = [record[0] for record in Run(root, tmp_path, launcher, SLEEP, 2, []).records()]
        launcher.process.kill()
        wait_until_dead(pids)


def test_port_taken_between_look_and_start(root, tmp_path):
    """torchrun's own failure to listen is told apart, so that the launcher can try another port."""
    import socket

    port = any_port()
    program = (
        "from atb_models.launcher import torchrun\n"
        f"try:\n    torchrun.run_ranks(1, '127.0.0.1', {port}, [])\n"
        "except torchrun.PortTaken:\n    print('taken')"
    )
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True):
        ended = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "taken\n"
