"""A newcomer may type what the front page prints: its commands run in a fresh copy of the project, as they are."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import env
from atb_models.demo import questions
from tests.documents.reading import ROOT, fences

PAGE = "README.md"
QUESTION = "Who is the CEO of Google?"
# Not run here: they need a network, or are this suite, or wait for a browser (see tests/server/test_docs.py).
ELSEWHERE = ("bash tests/run_tests.sh", ". .venv/bin/activate", "atb-models serve", "curl")
QUICK = ("atb-models run",)  # the others take longer, and each program is tried in a room of its own too


def lines() -> list[str]:
    """The commands of the page's blocks of shell."""
    return [line for kind, code in fences(PAGE) if kind == "shell" for line in code.splitlines()]


def commands() -> list[object]:
    found = [line.split(" #")[0].strip() for line in lines() if not line.startswith(ELSEWHERE)]
    return [pytest.param(line, id=line, marks=[] if line.startswith(QUICK) else [pytest.mark.full]) for line in found]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without what a clone lacks, and with the environment that its first command makes."""
    folder = tmp_path_factory.mktemp("clone") / "atb-models"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "outputs", "benchmark_result")
    shutil.copytree(ROOT, folder, ignore=left_out)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    # what `pip install -e` gives: this interpreter, which finds the copy first
    python = f"PYTHONPATH={folder} exec {shlex.quote(sys.executable)}"
    for name, program in (("python", ""), ("atb-models", "-m atb_models "), ("torchrun", "-m torch.distributed.run ")):
        (binaries / name).write_text(f'#!/bin/sh\n{python} {program}"$@"\n')
        (binaries / name).chmod(0o755)
    (binaries / "activate").write_text(f"PATH={binaries}:$PATH\n")
    digest = f'source "{folder}/examples/venv.sh"; installed_files'
    files = subprocess.run(["bash", "-c", digest], capture_output=True, text=True, check=True).stdout.strip()
    (folder / ".venv" / ".atb-models-installed-server").write_text(f"{files} {folder} torch==2.13.0\n")
    return folder


def type_in(folder: Path, command: str, *, activated: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command, in an activated shell unless told, with the embedded checkpoint as one's own weights."""
    clean = {name: value for name, value in os.environ.items() if name not in env.TABLE}
    weights = folder / "atb_models" / "demo" / "checkpoint"
    return subprocess.run(
        ["bash", "-c", f". .venv/bin/activate\n{command}" if activated else command],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1", "weight_path": str(weights)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_page_has_these_commands() -> None:
    assert {word for line in lines() for word in ELSEWHERE if line.startswith(word)} == set(ELSEWHERE)
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", commands())
def test_a_command_works_as_printed(copy: Path, command: str) -> None:
    ran = type_in(copy, command)
    assert ran.returncode == 0, ran.stderr
    known = {str(one["question"]): str(one["answer"]).strip() for one in questions()}
    if QUESTION in command or "quickstart" in command:
        assert f"Answer[0]: {known[QUESTION]}" in ran.stdout


def next_steps(folder: Path, venv: Path) -> list[str]:
    """The commands that the quickstart ends with."""
    ran = type_in(folder, f"VENV={shlex.quote(str(venv))} python examples/quickstart.py --device cpu --tp 1")
    assert ran.returncode == 0, ran.stderr
    log, found, hints = ran.stderr.partition("\nIt works. Try next:\n")
    assert found and "Answer[0]" in ran.stdout, ran.stderr
    return [line.strip() for line in hints.splitlines() if line.startswith("    ")]


def test_the_quickstart_ends_with_commands_that_work(copy: Path) -> None:
    chat, serve, program, modeltest, activate = next_steps(copy, copy / ".venv")
    bins = ".venv/bin"
    assert (chat, serve, activate) == (f"{bins}/atb-models chat", f"{bins}/atb-models serve", f". {bins}/activate")
    answer = next(str(one["answer"]) for one in questions() if one["question"] == QUESTION).strip()
    for command in (f"echo {shlex.quote(QUESTION)} | {chat}", program):
        ran = type_in(copy, command, activated=False)
        assert (ran.returncode, ran.stdout.strip()) == (0, answer), ran.stderr
    # Until it is ready; another service of this machine may have its port.
    until_ready = f"exec 3< <(exec {serve} --port 0 2>&1); grep -m 1 ready: <&3; kill $!; wait $!"
    assert "ready: http://127.0.0.1:" in type_in(copy, until_ready, activated=False).stdout
    ran = type_in(copy, modeltest, activated=False)
    assert ran.returncode == 0 and "| BoolQ | 8 | 1.0000 | 8 | 8 |" in ran.stdout, ran.stderr


@pytest.mark.parametrize("flags", ["--plan", "--print_graph", "--help"])
def test_the_quickstart_that_answers_nothing_says_nothing_of_it(copy: Path, flags: str) -> None:
    ran = type_in(copy, f"VENV=.venv python examples/quickstart.py --device cpu --tp 1 {flags}")
    assert ran.returncode == 0 and ran.stdout
    assert "It works" not in ran.stderr


def test_the_quickstart_names_an_environment_elsewhere_whole(copy: Path, tmp_path: Path) -> None:
    venv = tmp_path / "my venv"
    venv.symlink_to(copy / ".venv")
    chat, *_, activate = next_steps(copy, venv)
    assert (chat, activate) == (f"'{venv}/bin/atb-models' chat", f". '{venv}/bin/activate'")


def test_the_program_works_as_printed(copy: Path) -> None:
    ((_, code),) = [(kind, code) for kind, code in fences(PAGE) if kind == "python"]
    ran = type_in(copy, f"python -c {shlex.quote(code)}")
    assert ran.returncode == 0, ran.stderr
    answer = next(str(one["answer"]) for one in questions() if one["question"] == QUESTION)
    assert ran.stdout.split("\n") == [answer, answer]
