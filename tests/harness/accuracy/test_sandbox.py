"""The sandbox of generated code: how programs end in it, and what they cannot reach."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from atb_models.errors import ConfigError
from modeltest.accuracy import sandbox
from modeltest.accuracy.sandbox import check_sandbox, run_program

FORK_BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"

REMOUNT = "import ctypes\nassert ctypes.CDLL(None).mount(None, b'/', None, 32 | 4096, None) == 0"


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    """A machine that refuses namespaces is refused by the sandbox, which has a test of its own."""
    try:
        check_sandbox()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable that every process started from now on has."""
    value = secrets.token_hex()
    monkeypatch.setenv("TEST_PROCESS_MARK", value)
    return value


def left(mark: str) -> int:
    """Living processes with the mark."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # of another user, or gone; a dead one has an empty environment
            found += mark.encode() in path.read_bytes()
    return found


@pytest.mark.parametrize(
    ("program", "end"),
    [
        ("x = 1", "passed"),
        ("assert 1 == 2", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("class passed(Exception): pass\nraise passed", "exception passed"),
        ("import os; os._exit(0)", "ended early"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended early"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("input()", "EOFError"),
        ("print('passed' * 1000)", "passed"),
        ("if __name__ == '__main__': raise KeyError", "KeyError"),
        ("import collections, hashlib, heapq, itertools, json.tool, math, re, string, typing", "passed"),
        ("open('own', 'w').write('x'); assert open('own').read() == 'x'", "passed"),
    ],
)
def test_how_a_program_ends(program: str, end: str) -> None:
    assert run_program(program) == end


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)", FORK_BOMB])
def test_a_program_without_end_is_ended(mark: str, program: str) -> None:
    start = time.monotonic()
    assert run_program(program, seconds=0.5) == "timed out"
    assert time.monotonic() - start < 10
    assert left(mark) == 0


def test_a_fork_bomb_gets_no_further_than_its_limit() -> None:
    program = (
        "import os\nmade = 0\ntry:\n    while True:\n        if not os.fork():\n            while True: pass\n"
        "        made += 1\nexcept BlockingIOError:\n    raise {True: KeyError, False: ValueError}[made < 64]"
    )
    assert run_program(program) == "KeyError"


@pytest.mark.parametrize("detach", ["", "os.setsid()", "os.setsid()\n    if os.fork(): os._exit(0)"])
def test_processes_left_behind_end_with_the_program(mark: str, detach: str) -> None:
    program = f"import os, time\nif not os.fork():\n    {detach or 'pass'}\n    time.sleep(60)"
    start = time.monotonic()
    assert run_program(program) == "passed"
    assert time.monotonic() - start < 10
    assert left(mark) == 0


@pytest.mark.parametrize("program", ["x = bytearray(1 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
def test_memory_is_limited(program: str) -> None:
    assert run_program(program, seconds=10) == "MemoryError"


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert run_program(program) == "OSError"
        exec(program)


def test_nothing_of_the_machine_can_be_changed_or_seen() -> None:
    with tempfile.TemporaryDirectory() as folder:  # which all may change, as they may the file
        os.chmod(folder, 0o777)
        kept, new = Path(folder, "kept"), Path(folder, "new")
        kept.write_text("x")
        kept.chmod(0o666)
        for change in (f"open({str(kept)!r}, 'w')", f"os.unlink({str(kept)!r})", f"os.mkdir({str(new)!r})"):
            assert run_program(f"import os\n{change}") == "OSError", change
        assert kept.read_text() == "x" and list(Path(folder).iterdir()) == [kept]
    for path in ("/proc", "/dev", "/sys", "/run"):
        assert run_program(f"import os\nassert os.listdir({path!r}) == []") == "passed"
    assert run_program("open('big', 'wb').write(bytes(100 << 20))") == "OSError"


def test_no_way_back_to_what_was_given_up() -> None:
    assert run_program(REMOUNT) == "AssertionError"
    assert run_program("import os\nassert os.getuid() != 0 or os.getgroups()") == (
        "passed" if os.geteuid() == 0 else "AssertionError"
    )


def test_its_folder_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_program("open('own', 'w').write('x')") == "passed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "says"),
    [(None, "there is no unshare"), ("echo unshare: Operation not permitted >&2; exit 1", "permitted")],
)
def test_where_namespaces_are_refused_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, says: str
) -> None:
    if script:
        (tmp_path / "unshare").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=f"cannot be shut off on this machine .*{says}"):
        run_program("pass")


@pytest.mark.skipif(os.geteuid() != 0, reason="root can try another user, who then needs a Python that he may read")
def test_a_user_who_is_not_root_has_the_sandbox_too(tmp_path: Path, root: Path) -> None:
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if python is None:
        pytest.skip("needs a Python outside of root's folders")
    text = Path(sandbox.__file__).read_text("utf-8").replace("from atb_models.errors import", "from errors import")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        Path(folder, "sandbox.py").write_text(text, encoding="utf-8")
        shutil.copy(Path(sandbox.__file__).with_name("jail.py"), folder)
        shutil.copy(root / "atb_models" / "errors.py", folder)
        through_exec = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {REMOUNT!r}], check=True)"
        programs = ["pass", "open('/tmp/x', 'w')", REMOUNT, through_exec]
        program = f"from sandbox import run_program; print(*map(run_program, {programs}))"
        ended = subprocess.run(
            [python, "-c", program],
            cwd=folder,
            user=54321,
            group=54321,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
    if "not permitted" in ended.stderr:
        pytest.skip("this machine allows user namespaces to nobody but root")
    assert ended.stdout.split() == ["passed", "OSError", "AssertionError", "CalledProcessError"], ended.stderr


def test_the_jail_needs_nothing_but_the_standard_library() -> None:
    jail = Path(sandbox.__file__).with_name("jail.py")
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", f"exec(open({str(jail)!r}).read(), {{}})"])
    assert ended.returncode == 0
