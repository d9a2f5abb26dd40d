"""`pip install` into fresh environments, offline: with g++, with ziglang, and with neither."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from atb_models.ops.native.build import FOLDER, NO_COMPILER, RECORD, levels_of, record
from tests.native.cases import LEVELS
from tests.native.project import copy_project

pytestmark = pytest.mark.full

HERE = levels_of(platform.machine())
LIB = FOLDER.relative_to(FOLDER.parents[3])
NORM = """
import torch
from atb_models.ops.native.library import load
from atb_models.ops.native.rows import rms_norm
print(rms_norm(load("{level}"), torch.tensor([[3.0, 4.0]]), torch.ones(2), 0.0).tolist())
"""


class Environment:
    """A fresh virtual environment whose pip sees one folder of wheels; torch is that of these tests."""

    def __init__(self, folder: Path, shelf: Path, path: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.python, self.folder = folder / "bin" / "python", folder
        self.environ: dict[str, str] = {}
        self.packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip())
        paths = [sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))]
        (self.packages / "torch.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "ATB_", "CXX"))}
        self.environ = {**keep, "PATH": f"{folder / 'bin'}{path}", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf)}
        self.environ |= {"PIP_CONFIG_FILE": os.devnull, "HOME": str(folder / "no home")}

    def run(self, *words: str | Path) -> str:
        """What Python prints."""
        return self._ended(*words).stdout

    def install(self, *words: str | Path) -> str:
        """What the build says; pip passes it on to stderr."""
        return self._ended("-m", "pip", "install", "-v", "--no-deps", *words).stderr

    def _ended(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [self.python, *words], env=self.environ, cwd=self.folder, capture_output=True, text=True, timeout=900
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended

    def operations(self) -> str:
        """The line of `atb-models env`."""
        said = self.run("-m", "atb_models", "env").splitlines()
        (line,) = [line for line in said if line.startswith("CPU operations:")]
        return line


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheels of setuptools and ziglang."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        folder,
        "setuptools>=77",
        "ziglang==0.17.1",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if ended.returncode:
        pytest.skip(f"pip cannot fetch setuptools and ziglang: {ended.stderr}")
    return folder


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    return copy_project(root, tmp_path / "project")


def without_ziglang(wheels: Path, to: Path) -> Path:
    to.mkdir()
    for wheel in wheels.glob("setuptools*"):
        shutil.copy(wheel, to)
    return to


def test_a_machine_without_a_compiler_gets_every_level_by_ziglang(wheels: Path, project: Path, tmp_path: Path) -> None:
    fresh = Environment(tmp_path / "venv", wheels, "")
    fresh.install(project)
    (tags,) = fresh.packages.glob("atb_models-*.dist-info/WHEEL")
    assert f"Tag: py3-none-manylinux_2_17_{platform.machine()}\n" in tags.read_text()
    built = record(fresh.packages / LIB)
    assert built == {level.name: {"compiler": "ziglang 0.17.1", "complaint": None} for level in HERE}
    assert fresh.operations() == (
        f"CPU operations: {LEVELS[-1]} (the best that the CPU has), compiled by ziglang 0.17.1"
    )
    assert fresh.run("-c", NORM.format(level=LEVELS[-1])).startswith("[[0.8485")
    assert not (fresh.folder / "no home").exists()


@pytest.mark.parametrize("words", [[], ["--no-build-isolation"], ["-e"], ["--no-build-isolation", "-e"]])
def test_where_no_compiler_can_be_had_torch_serves(
    wheels: Path, project: Path, tmp_path: Path, words: list[str]
) -> None:
    shelf = without_ziglang(wheels, tmp_path / "shelf")
    fresh = Environment(tmp_path / "venv", shelf, "")
    if "--no-build-isolation" in words:
        fresh.run("-m", "pip", "install", "setuptools>=77")
    said = fresh.install(*words, project)
    assert said.count(f"is not built: {NO_COMPILER}") == len(HERE)
    line = fresh.operations()
    assert line.startswith("CPU operations: reference (") and line.endswith("; torch serves, slower")
    assert NO_COMPILER in line and "python -m atb_models.ops.native.build" in line


def test_an_editable_installation_compiles_into_the_tree_once(wheels: Path, project: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    fresh = Environment(tmp_path / "venv", without_ziglang(wheels, tmp_path / "shelf"), f":{os.environ['PATH']}")

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (project / LIB).glob("*.so")}

    fresh.install("-e", project)
    first = times()
    assert len(first) == len(HERE) and (project / LIB / RECORD).is_file()
    assert f"CPU operations: {LEVELS[-1]} (the best that the CPU has), compiled by g++ " in fresh.operations()
    assert fresh.run("-c", NORM.format(level=LEVELS[-1])).startswith("[[0.8485")
    fresh.install("-e", f"{project}[plot]")
    assert times() == first
    source = project / LIB.parent / "csrc" / "rows.cpp"
    source.write_text(source.read_text() + "// changed\n")
    assert "was built from other sources" in fresh.operations()
    fresh.install("-e", project)
    assert not set(times().values()) & set(first.values())
    assert "the best that the CPU has" in fresh.operations()
