"""When a rank's process ends with what started it, shown on processes without torch."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from atb_models.ranks.lifetime import child_environment
from tests.ranks import toys

RANK = """
import os, signal, sys, time
from atb_models.ranks.lifetime import die_with_parent
assert "torch" not in sys.modules
acts = die_with_parent()
print("rank" if acts else "no rank", signal.getsignal(signal.SIGINT) == signal.SIG_DFL, os.getpid(), flush=True)
time.sleep({seconds})
"""
LAUNCHER = """
import os, subprocess, sys, time
os.environ["ATB_LAUNCHER_PID"] = str(os.getpid())
subprocess.Popen([*{wrapper!r}, sys.executable, "-c", {rank!r}])
time.sleep({seconds})
"""
WRAPPER = ["bash", "-c", '"$@"; :', "bash"]  # does not exec what it runs


def _rank(seconds: int = 0) -> list[str]:
    return [sys.executable, "-c", RANK.format(seconds=seconds)]


def _launcher(seconds: int, wrapper: Sequence[str] = ()) -> list[str]:
    program = LAUNCHER.format(wrapper=list(wrapper), rank=RANK.format(seconds=seconds), seconds=seconds)
    return [sys.executable, "-c", program]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=20)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATB_LAUNCHER_PID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


def test_process_that_is_no_rank() -> None:
    assert _run(_rank()).stdout.startswith("no rank False")


def test_launcher_itself_is_no_rank() -> None:
    """A script that exports its pid and execs the program has made it the launcher, not a rank."""
    exec_script = ["bash", "-c", 'export ATB_LAUNCHER_PID=$$; exec "$@"', "bash"]
    assert _run([*exec_script, *_rank()]).stdout.startswith("no rank False")


def test_launcher_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv("ATB_LAUNCHER_PID", str(gone.pid))
    ended = _run(_rank())
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"(pid {gone.pid}, ATB_LAUNCHER_PID) has ended" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_launcher(number: signal.Signals) -> None:
    with subprocess.Popen(_launcher(60), stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        *said, pid = launcher.stdout.readline().split()
        assert said == ["rank", "True"]
        launcher.send_signal(number)
        toys.wait_until_dead([int(pid)])


def test_rank_behind_a_wrapper_script() -> None:
    """Its parent is not the launcher, which lives all the same."""
    with subprocess.Popen(_launcher(1, WRAPPER), stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline().startswith("rank True")


def test_torchrun_by_hand_is_a_launcher_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert _run(_rank()).stdout.startswith("rank True")


def test_launch_by_process_1() -> None:
    """In a container the launcher may be pid 1; that the parent is 1 does not mean that it was orphaned."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    if subprocess.run([*command, "pass"], capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces")
    ended = _run([*command, _launcher(1)[-1]])
    assert ended.stdout.startswith("rank True"), ended.stderr


def test_child_keeps_what_the_user_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    users = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "1", "HCCL_IF_BASE_PORT": "50000", "MASTER_PORT": "20007"}
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", "/users")
    child = child_environment()
    assert {name: child[name] for name in users} == users and child["PYTHONPATH"].split(":")[-1] == "/users"
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD")
    assert child_environment()["TORCH_DEVICE_BACKEND_AUTOLOAD"] == "0"


def test_zombie_and_reaped_process_are_dead() -> None:
    with subprocess.Popen(["true"]) as process:
        toys.wait_until_dead([process.pid])
        assert Path(f"/proc/{process.pid}/stat").exists()
    toys.wait_until_dead([process.pid], 0)
