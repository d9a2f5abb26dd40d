"""Compile the library: `python -m atb_models.ops.native.build [--folder FOLDER] [LEVEL ...]`.

Uses the standard library alone, so that an installation can run this file where nothing else is installed yet.
The compiler is $CXX, else g++, else clang++, else the one inside the PyPI package ziglang. No C++ library is linked.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
FOLDER = Path(__file__).parent / "lib"
RECORD = "built.json"  # beside the libraries: what made each level, or why it is not there

NO_COMPILER = "no C++ compiler: set CXX, or install g++, clang++ or the Python package ziglang"

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

    def version(self) -> str:
        """Its name and release, as it gives them: `g++ (Debian 12.2.0-14) 12.2.0`, `ziglang 0.17.1`."""
        if self.zig:
            return f"ziglang {metadata.version('ziglang')}"
        try:
            said = subprocess.run([*self.command, "--version"], capture_output=True, text=True).stdout
        except OSError:
            said = ""
        return said.partition("\n")[0].strip() or shlex.join(self.command)


@dataclass(frozen=True)
class LevelOutcome:
    """What became of one level: the file, or what the compiler said."""

    level: Level
    path: Path
    complaint: str | None


def compilers() -> Iterator[Compiler]:
    """$CXX, g++, clang++ and ziglang, those that are there; the first is taken."""
    if chosen := os.environ.get("CXX", "").strip():
        yield Compiler(tuple(shlex.split(chosen)))
    for name in ("g++", "clang++"):
        if found := shutil.which(name):
            yield Compiler((found,))
    if importlib.util.find_spec("ziglang") is not None:
        yield Compiler((sys.executable, "-m", "ziglang", "c++"), zig=True)


def find_compiler() -> Compiler | None:
    """The compiler that is taken; None where there is none."""
    return next(compilers(), None)


def levels_of(machine: str) -> tuple[Level, ...]:
    """The levels of a kind of machine (platform.machine()), the best last."""
    return tuple(level for level in LEVELS if level.machine == machine)


def source_id() -> str:
    """A digest of the sources and of this file: a library made from others does not fit this Python code."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(SOURCES.rglob("*.*")):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def library_path(level: Level, folder: Path = FOLDER) -> Path:
    """Where the library of a level lies."""
    return folder / f"atb_ops_{level.name}.so"


def fits(level: Level, folder: Path = FOLDER) -> bool:
    """Whether the library of a level lies in `folder` and was made from the sources that lie here."""
    path = library_path(level, folder)
    return path.is_file() and f"atb-source-id:{source_id()}".encode() in path.read_bytes()


def stale(levels: Iterable[Level], compiler: Compiler | None, folder: Path = FOLDER) -> list[Level]:
    """Those of `levels` to compile: made from other sources, by a compiler other than `compiler`, or not at all."""
    made_by = compiler and compiler.version()
    by_level = record(folder)
    return [
        level
        for level in levels
        if not fits(level, folder) or (made_by and by_level.get(level.name, {}).get("compiler") != made_by)
    ]


def record(folder: Path = FOLDER) -> dict[str, dict[str, str | None]]:
    """Level -> `compiler`, its version, and `complaint`, None where the level was made; {} before the first build."""
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def build(levels: Iterable[Level], compiler: Compiler | None, folder: Path = FOLDER) -> list[LevelOutcome]:
    """Compile `levels` into `folder` and record what became of them. A file appears only when it is complete.

    Without a compiler every level's outcome says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if compiler is None:
        outcomes = [LevelOutcome(level, library_path(level, folder), NO_COMPILER) for level in levels]
    else:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool, tempfile.TemporaryDirectory() as cache:
            # zig would keep what it makes once, libc's start files for instance, in the user's home, if there is one;
            # users may name other folders
            environ = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache, **os.environ}
            outcomes = list(pool.map(lambda level: _compile(level, compiler, folder, environ), levels))
    made_by = compiler and compiler.version()
    rows = {
        outcome.level.name: {"compiler": made_by, "complaint": outcome.complaint}
        for outcome in outcomes
        if not (outcome.complaint and fits(outcome.level, folder))  # what another compiler made is still there
    }
    partial = folder / f"{RECORD}.{os.getpid()}"
    partial.write_text(json.dumps(record(folder) | rows, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / RECORD)
    return outcomes


def _compile(level: Level, compiler: Compiler, folder: Path, environ: dict[str, str]) -> LevelOutcome:
    path = library_path(level, folder)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    sources = sorted(str(source) for source in SOURCES.rglob("*.cpp"))
    identity = (f'-DATB_SOURCE_ID="{source_id()}"', f'-DATB_LEVEL="{level.name}"')
    command = [*compiler.command, *COMMON, *compiler.options(level), *identity, *sources, "-o", str(partial)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, env=environ)
    except OSError as error:
        return LevelOutcome(level, path, f"{compiler.command[0]}: {error.strerror}")
    if ended.returncode:
        partial.unlink(missing_ok=True)
        return LevelOutcome(level, path, ended.stderr.strip() or f"{compiler.command[0]} ended with {ended.returncode}")
    partial.replace(path)
    return LevelOutcome(level, path, None)


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
        print(NO_COMPILER, file=sys.stderr)
        return 1
    wanted = [level for level in here if not args.level or level.name in args.level]
    outcomes = build(wanted, compiler, args.folder)
    for outcome in outcomes:
        print(f"{outcome.level.name}: {outcome.complaint or outcome.path}")
    return 1 if any(outcome.complaint for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
