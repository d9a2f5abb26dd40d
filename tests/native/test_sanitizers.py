"""The C++ sources in a program of their own, sanitize/sanitize.cpp: with AddressSanitizer and UBSan, and on aarch64."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from atb_models.ops.native.build import LEVELS as ALL
from atb_models.ops.native.build import SOURCES, Level, levels_of
from tests.native.cases import LEVELS

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
OPTIONS = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off", "-pthread", '-DATB_SOURCE_ID="test"')
# The best level by default: the others differ in one header each.
EACH = [pytest.param(name, marks=[pytest.mark.full] if name != LEVELS[-1] else []) for name in LEVELS]


def compile_program(compiler: str, level: Level, folder: Path, how: tuple[str, ...] = SANITIZE) -> Path:
    sources = [*SOURCES.rglob("*.cpp"), Path(__file__).parent / "sanitize" / "sanitize.cpp"]

    def compile_one(source: Path) -> str:
        done = folder / f"{source.stem}.o"
        command = [compiler, *OPTIONS, *how, *level.options, f"-I{SOURCES}", "-c", str(source), "-o", str(done)]
        subprocess.run(command, check=True)
        return str(done)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "sanitize"
    subprocess.run([compiler, *how, "-pthread", *objects, "-o", str(program)], check=True)
    return program


@pytest.mark.parametrize("name", EACH)
def test_sources_are_clean(name: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    program = compile_program(compiler, next(level for level in ALL if level.name == name), tmp_path)
    check(str(program))


@pytest.mark.full
def test_aarch64_under_qemu(tmp_path: Path) -> None:
    compiler, qemu = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or qemu is None:
        pytest.skip("needs g++-aarch64-linux-gnu and qemu-user")
    (neon,) = levels_of("aarch64")
    program = compile_program(compiler, neon, tmp_path, ("-O2",))
    check(qemu, "-L", "/usr/aarch64-linux-gnu", str(program))  # where the compiler's libraries are


def check(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    reported = {line.partition(":")[0] for line in ended.stdout.splitlines()}
    operations = {"attention", "latent attention", "linear", "experts", "rows", "top_logits", "rope", "gating"}
    assert reported == {*operations, "sublayers", "decoder", "limits"}
