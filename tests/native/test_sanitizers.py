"""The C++ sources under AddressSanitizer and UBSan, in a program of their own: tests/native/sanitize.cpp."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from native.cases import LEVELS

from atb_models.ops.native.build import LEVELS as ALL
from atb_models.ops.native.build import SOURCES, Level

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
OPTIONS = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-pthread", '-DATB_SOURCE_ID="test"')
# The best level by default: the others differ in one header each.
EACH = [pytest.param(name, marks=[pytest.mark.full] if name != LEVELS[-1] else []) for name in LEVELS]


def compile_program(compiler: str, level: Level, folder: Path) -> Path:
    sources = [*SOURCES.rglob("*.cpp"), Path(__file__).with_name("sanitize.cpp")]

    def compile_one(source: Path) -> str:
        done = folder / f"{source.stem}.o"
        command = [compiler, *OPTIONS, *SANITIZE, *level.options, f"-I{SOURCES}", "-c", str(source), "-o", str(done)]
        subprocess.run(command, check=True)
        return str(done)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "sanitize"
    subprocess.run([compiler, *SANITIZE, "-pthread", *objects, "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("name", EACH)
def test_sources_are_clean(name: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    program = compile_program(compiler, next(level for level in ALL if level.name == name), tmp_path)
    ended = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    reported = {line.partition(":")[0] for line in ended.stdout.splitlines()}
    assert reported == {"attention", "linear", "experts", "rows", "rope", "gating"}
