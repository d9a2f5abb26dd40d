"""`atb-models`, and how command line programs end."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys

import pytest

import atb_models
from atb_models import cli
from atb_models.command import exit_status
from atb_models.command.exit_status import run_guarded
from atb_models.command.interrupt import interrupt_ends_at_once
from atb_models.errors import AtbError, CapacityError, ConfigError, RankError


def test_demo_path(capsys, demo):
    assert cli.main(["demo_path"]) == 0
    assert capsys.readouterr().out == f"{demo}\n"


def test_env(capsys, clean_environ, monkeypatch):
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"atb-models {atb_models.__version__}, python ")
    assert "transformers 4.36.2" in out and "RESERVED_MEMORY_GB" in out
    if importlib.util.find_spec("torch_npu") is None:
        assert "torch_npu (not installed)" in out and "Ascend devices: none seen; torch_npu is not installed" in out
    monkeypatch.setenv("BIND_CPU", "x")
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == "atb-models: error: BIND_CPU='x' must be 0 or 1\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["walk"], "invalid choice: 'walk'"),
        (["env", "more"], "unexpected word 'more'"),
        (["run", "--pp", "2"], "--pp 2 is refused"),
        (["launch", "--pp", "2"], "--pp 2 is refused"),
    ],
)
def test_mistake_is_one_line(capsys, argv, message, monkeypatch, clean_environ):
    monkeypatch.setattr(exit_status.os, "environ", dict(exit_status.os.environ))
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("atb-models: error: ") and message in line


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("a 1, b 2"), 2, "a 1, b 2"),
        (CapacityError("too large"), 1, "too large"),
        (AtbError("x"), 1, "x"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
@pytest.mark.usefixtures("clean_environ")
def test_exit_status(capsys, error, status, line):
    def program():
        raise error

    assert run_guarded(program) == status
    assert capsys.readouterr().err == f"atb-models: error: {line}\n"


@pytest.mark.usefixtures("clean_environ")
def test_missing_package_is_named(capsys):
    def program():
        import no_such_package  # noqa: F401

    assert run_guarded(program) == 1
    assert f"{sys.executable} has no module no_such_package; bash examples/quickstart.sh" in capsys.readouterr().err


@pytest.mark.usefixtures("clean_environ")
def test_a_bug_shows_where_it_is(capsys):
    assert run_guarded(lambda: 1 // 0) == 1
    error = capsys.readouterr().err
    assert error.startswith("atb-models: error: internal error\nTraceback") and "ZeroDivisionError" in error


def test_rank_tells_the_launcher(capsys, monkeypatch, tmp_path):
    def program():
        raise RankError("rank 2 is gone")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("ATB_LAUNCHER_ERRORS", str(tmp_path / "told"))
    assert run_guarded(program) == 1
    assert (
        tmp_path / "told"
    ).read_text() == '{"rank": 1, "message": "rank 2 is gone", "status": 1, "is_consequence": true}\n'
    monkeypatch.setenv("ATB_LAUNCHER_ERRORS", str(tmp_path / "none" / "told"))
    run_guarded(program)
    assert capsys.readouterr().err == "atb-models: error: rank 2 is gone\n"


def test_reader_that_leaves_ends_the_program_quietly():
    program = "from atb_models.cli import main; import sys; sys.exit(main(['env']))"
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.stdin.read(); {program}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


ENV = "from atb_models.cli import main; import sys; sys.exit(main({words!r}))"


def shell(redirection, *words, **environ):
    """`atb-models` with these words under a shell's redirection."""
    command = ["bash", "-c", f'exec "$0" "$@" {redirection}', sys.executable, "-c", ENV.format(words=list(words))]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ})


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["env"], ["demo_path"], ["--help"]])
def test_full_stdout_is_one_line(words, unbuffered):
    ended = shell(">/dev/full", *words, PYTHONUNBUFFERED=unbuffered)
    if words != ["--help"] or not unbuffered:  # argparse swallows the error of its own write
        assert ended.stderr == ("atb-models: error: stdout cannot be written: No space left on device\n")
        assert ended.returncode == 1


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_that_are_closed_or_full_change_no_status(redirection, unbuffered):
    for words, status in ((["demo_path"], 0), (["walk"], 2)):
        ended = shell(redirection, *words, PYTHONUNBUFFERED=unbuffered)
        assert ended.returncode == status
        assert "Traceback" not in ended.stderr


def test_rank_whose_reader_left_tells_nothing_to_print(capsys, monkeypatch, tmp_path):
    def program():
        raise BrokenPipeError

    monkeypatch.setattr(exit_status, "_silence", lambda stream: None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("ATB_LAUNCHER_ERRORS", str(tmp_path / "told"))
    assert run_guarded(program) == 1
    assert '"message": "", "status": 1' in (tmp_path / "told").read_text()
    exit_status.print_error("")
    assert capsys.readouterr().err == ""


def test_an_error_is_told_whatever_the_rank_is_said_to_be(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("ATB_LAUNCHER_ERRORS", str(tmp_path / "told"))
    assert exit_status.report("no such model", 2) == 2
    assert capsys.readouterr().err == "atb-models: error: no such model\n"


def test_interrupt_ends_at_once():
    program = (
        "import os, signal, sys\n"
        "from atb_models.command.interrupt import interrupt_ends_at_once\n"
        "with interrupt_ends_at_once(): os.kill(os.getpid(), signal.SIGINT)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_interrupt_is_as_before_afterwards(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interrupt_ends_at_once():
            within = signal.getsignal(signal.SIGINT)
        assert within == (signal.SIG_IGN if handler == signal.SIG_IGN else signal.SIG_DFL)
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("program", ["run_pa.py", "examples/launch.py"])
def test_programs_end_at_once_while_torch_is_imported(root, program, tmp_path, demo):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    ended = subprocess.run(
        [sys.executable, str(root / program), "--model_path", str(demo)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"},
    )  # fmt: skip
    assert ended.returncode == -signal.SIGINT
    assert "Traceback" not in ended.stderr


def test_nothing_imports_torch_before_it_is_needed():
    program = (
        "import sys, atb_models.cli, atb_models.launch, atb_models.launcher.main, atb_models.env_report\n"
        "assert atb_models.SamplingParams and atb_models.RequestOutput\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
