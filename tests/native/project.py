"""A copy of what an installation is made from, and the build backend in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TOP = ("LICENSE", "MANIFEST.in", "README.md", "build_backend.py", "pyproject.toml", "run_pa.py", "setup.py")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "lib", "data", "outputs", "*.safetensors")


def copy_project(root: Path, to: Path) -> Path:
    """The files of the project, the package and modeltest, without the libraries that were built."""
    to.mkdir()
    for name in TOP:
        shutil.copy(root / name, to / name)
    shutil.copytree(root / "atb_models", to / "atb_models", ignore=LEFT_OUT)
    shutil.copytree(root / "tests" / "modeltest", to / "tests" / "modeltest", ignore=LEFT_OUT)
    return to


def run_backend(project: Path, body: str, **environ: str) -> str:
    """What `body` prints in a Python of its own, in which `backend` is the build backend of `project`."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import build_backend as backend\n{body}"],
        cwd=project,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def stand_in_compiler(
    folder: Path, name: str = "g++", glibc: str = "GLIBC_2.14", fails: str = "", makes: Path | None = None
) -> Path:
    """A program that takes a compiler's options and writes a file with the marks of a library, or copies the library
    `makes`; or says `fails`."""
    folder.mkdir(exist_ok=True)
    marks = f'open(path, "w").write("atb-source-id:" + source + " {glibc}")'
    program = folder / name
    program.write_text(
        f"""#!{sys.executable}
import re, shutil, sys
if "--version" in sys.argv:
    sys.exit(print("{name} (stand-in) 1.0"))
if "avx512" in " ".join(sys.argv) and "{fails}":
    sys.exit("{fails}\\nmore")
source = re.search(r'ATB_SOURCE_ID="(\\w+)"', " ".join(sys.argv))[1]
path = sys.argv[sys.argv.index("-o") + 1]
{marks if makes is None else f"shutil.copy({str(makes)!r}, path)"}
"""
    )
    program.chmod(0o755)
    return program
