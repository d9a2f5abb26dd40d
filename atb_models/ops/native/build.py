"""Compile the library: `python -m atb_models.ops.native.build [--folder FOLDER] [LEVEL ...]`.

Uses the standard library alone, so that an installation can run this file where nothing else is installed yet.
The compiler is $CXX, else g++, else clang++, else the one inside the PyPI package ziglang. No C++ library is linked.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
FOLDER = Path(__file__).parent / "lib"

COMMON = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
    "-fno-threadsafe-statics", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-pthread",
    "-Wl,--as-needed",
)  # fmt: skip


@dataclass(frozen=True)
class Level:
    """An instruction set that the library is compiled for.

    `needs`: flags of /proc/cpuinfo that a CPU must have; `options` for g++ and clang++; `zig` names the CPU for zig.
    """

    name: str
    machine: str
    needs: frozenset[str]
    options: tuple[str, ...]
    zig: str


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512")
_NEEDS_AVX2 = frozenset({"avx2", "fma", "f16c"})
_NEEDS_AVX512 = _NEEDS_AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}

# The best of a machine last.
LEVELS = (
    Level("avx2", "x86_64", _NEEDS_AVX2, _AVX2, "x86_64_v3"),
    Level("avx512", "x86_64", _NEEDS_AVX512, _AVX512, "x86_64_v4+avx512vnni"),
    Level(
        "avx512bf16",
        "x86_64",
        _NEEDS_AVX512 | {"avx512_bf16"},
        (*_AVX512, "-mavx512bf16"),
        "x86_64_v4+avx512vnni+avx512bf16",
    ),
    Level(
        "neon",
        "aarch64",
        frozenset({"asimd", "asimdhp", "asimddp"}),
        ("-march=armv8.2-a+fp16+dotprod",),
        "tsv110",
    ),
)


@dataclass(frozen=True)
class Compiler:
    """`command` starts it; `zig`: it takes a CPU's name and compiles for other machines too."""

    command: tuple[str, ...]
    zig: bool = False

    def options(self, level: Level) -> tuple[str, ...]:
        if not self.zig:
            return level.options
        target = ("-target", f"{level.machine}-linux-gnu.2.17", f"-mcpu={level.zig}")
        return (*target, "-fno-sanitize=all", "-nostdlib++", "-s")


@dataclass(frozen=True)
class Outcome:
    """What became of one level: the file, or what the compiler said."""

    level: Level
    path: Path
    complaint: str | None


def find_compiler() -> Compiler | None:
    """$CXX, g++, clang++ or ziglang, the first that is there."""
    if chosen := os.environ.get("CXX", "").strip():
        return Compiler(tuple(shlex.split(chosen)))
    for name in ("g++", "clang++"):
        if found := shutil.which(name):
            return Compiler((found,))
    if importlib.util.find_spec("ziglang") is not None:
        return Compiler((sys.executable, "-m", "ziglang", "c++"), zig=True)
    return None


def levels_of(machine: str) -> tuple[Level, ...]:
    """The levels of a kind of machine (platform.machine()), the best last."""
    return tuple(level for level in LEVELS if level.machine == machine)


def source_id() -> str:
    """A digest of the sources: a library made from others does not fit this Python code."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.*")):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def library_path(level: Level, folder: Path = FOLDER) -> Path:
    """Where the library of a level lies."""
    return folder / f"atb_ops_{level.name}.so"


def build(levels: Iterable[Level], compiler: Compiler, folder: Path = FOLDER) -> list[Outcome]:
    """Compile `levels` into `folder`. A file appears only when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda level: _compile(level, compiler, folder), levels))


def _compile(level: Level, compiler: Compiler, folder: Path) -> Outcome:
    path = library_path(level, folder)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    sources = sorted(str(source) for source in SOURCES.rglob("*.cpp"))
    identity = (f'-DATB_SOURCE_ID="{source_id()}"', f'-DATB_LEVEL="{level.name}"')
    command = [*compiler.command, *COMMON, *compiler.options(level), *identity, *sources, "-o", str(partial)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return Outcome(level, path, f"{compiler.command[0]}: {error.strerror}")
    if ended.returncode:
        partial.unlink(missing_ok=True)
        return Outcome(level, path, ended.stderr.strip() or f"{compiler.command[0]} ended with {ended.returncode}")
    partial.replace(path)
    return Outcome(level, path, None)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    here = levels_of(platform.machine())
    parser = argparse.ArgumentParser(
        prog="python -m atb_models.ops.native.build", description="Compile the CPU's library."
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the libraries go")
    parser.add_argument("level", nargs="*", help="of this machine: " + ", ".join(level.name for level in here))
    args = parser.parse_args(arguments)
    if unknown := set(args.level) - {level.name for level in here}:
        parser.error(f"no level of a {platform.machine()} machine: {', '.join(sorted(unknown))}")
    compiler = find_compiler()
    if compiler is None:
        print("no C++ compiler: set CXX, or install g++, clang++ or the Python package ziglang", file=sys.stderr)
        return 1
    wanted = [level for level in here if not args.level or level.name in args.level]
    outcomes = build(wanted, compiler, args.folder)
    for outcome in outcomes:
        print(f"{outcome.level.name}: {outcome.complaint or outcome.path}")
    return 1 if any(outcome.complaint for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
