"""What is said of the level: in the log of an engine, and by `atb-models env`."""

from __future__ import annotations

import io
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models import LLM, cli
from atb_models.env_report import print_report
from atb_models.ops.native import library, report
from atb_models.ops.native.build import LEVELS as ALL
from atb_models.ops.native.build import NO_COMPILER, build, record
from atb_models.ops.native.library import LevelChoice
from tests.native.cases import LEVELS

WRONG = "ATB_CPU_ISA=avx9 is no instruction set of this CPU; possible here: reference"


def lines_of(environ: dict[str, str]) -> list[str]:
    out = io.StringIO()
    print_report(out, environ)
    return [line for line in out.getvalue().splitlines() if "CPU operations" in line or "C++ compilers" in line]


def test_the_report_names_the_level_the_reason_and_the_compilers(built: list[str], clean_environ: None) -> None:
    if not LEVELS:
        pytest.skip("the CPU has none of the levels")
    line, compilers = lines_of({})
    compiler = record()[LEVELS[-1]]["compiler"]
    assert line == f"CPU operations: {LEVELS[-1]} (the best that the CPU has), compiled by {compiler}"
    assert compiler and compiler in compilers
    line, _ = lines_of({"ATB_CPU_ISA": LEVELS[0]})
    assert line.startswith(f"CPU operations: {LEVELS[0]} (ATB_CPU_ISA), compiled by ")


def test_the_report_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    line, compilers = lines_of({"ATB_CPU_ISA": "reference"})
    assert line == "CPU operations: reference (ATB_CPU_ISA); torch serves, slower"
    assert compilers in (
        "C++ compilers, the first is taken: none",
        "C++ compilers, the first is taken: ziglang 0.17.1",
    )


def test_what_was_not_built_says_why_and_what_helps(tmp_path: Path) -> None:
    for level in ALL:
        assert (library.unusable(level, tmp_path) or "").endswith(f"was not built: {library.BUILD}")
    assert shlex.split(library.BUILD) == [sys.executable, "-m", "atb_models.ops.native.build"]
    build(ALL, None, tmp_path)
    for level in ALL:
        choice = library.choose(None, level.needs, level.machine, tmp_path)
        assert choice.level is None
        assert report.describe(choice).startswith("reference (/") and NO_COMPILER in report.describe(choice)


def test_an_instruction_set_that_is_none_is_an_error_of_env(
    capsys: pytest.CaptureFixture[str], clean_environ: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", "avx9")
    assert cli.main(["env"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"atb-models: error: {WRONG}")
    assert f"CPU operations: none; {WRONG}" in captured.out


def test_an_engine_says_once_what_serves(
    caplog: pytest.LogCaptureFixture, clean_environ: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    with caplog.at_level(logging.INFO, "atb_models"), LLM(device="cpu", max_batch_size=1):
        pass
    said = [record for record in caplog.records if record.name == report.__name__]
    assert [(record.levelname, record.getMessage()) for record in said] == [
        ("INFO", f"CPU operations: {report.describe(LevelChoice(None, 'ATB_CPU_ISA'))}")
    ]


def test_a_run_with_an_instruction_set_that_is_none_ends_with_status_2(root: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(root / "run_pa.py"), "--device", "cpu", "--input_texts", "hello"],
        env={**os.environ, "ATB_CPU_ISA": "avx9"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 2
    assert f"atb-models: error: {WRONG}" in ended.stderr
