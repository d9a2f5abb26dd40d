"""The build backend and setup.py: when a compiler is asked for, what is built, and what a wheel holds."""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from atb_models.ops.native.build import RECORD, levels_of, library_path, record
from atb_models.published import NAMES
from tests.native.project import copy_project, run_backend, stand_in_compiler

pytest.importorskip("setuptools")

HERE = levels_of(platform.machine())
ZIGLANG = "['ziglang==0.17.1']"
NOTHING = "[]"


@pytest.fixture(scope="module")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(root, tmp_path_factory.mktemp("install") / "project")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one empty folder, and no other place for a compiler or for pip to look."""
    for name in ("CXX", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    return path


def asked(project: Path, kind: str = "wheel", **environ: str) -> str:
    return run_backend(project, f"print(backend.get_requires_for_build_{kind}())", **environ).splitlines()[-1]


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_ziglang_is_asked_for_where_there_is_no_compiler(project: Path, bare: Path, kind: str) -> None:
    assert asked(project, kind) == ZIGLANG


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_a_compiler_on_the_path_is_enough(project: Path, bare: Path, kind: str, name: str) -> None:
    stand_in_compiler(bare, name)
    assert asked(project, kind) == NOTHING


def test_a_named_compiler_is_enough(project: Path, bare: Path) -> None:
    assert asked(project, CXX="/opt/compiler -m64") == NOTHING


def test_ziglang_that_is_there_is_enough(project: Path, bare: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "packages" / "ziglang-0.17.1.dist-info"
    shelf.mkdir(parents=True)
    (shelf.parent / "ziglang.py").touch()
    (shelf / "METADATA").write_text("Metadata-Version: 2.1\nName: ziglang\nVersion: 0.17.1\n")
    assert asked(project, PYTHONPATH=str(shelf.parent)) == NOTHING
    body = "compiler = backend.native.find_compiler()\nprint(compiler.version(), compiler.command[1:])"
    said = run_backend(project, body, PYTHONPATH=str(shelf.parent))
    assert said == "ziglang 0.17.1 ('-m', 'ziglang', 'c++')\n"


def test_the_order_of_the_compilers(project: Path, bare: Path) -> None:
    body = "print(*(compiler.version() for compiler in backend.native.compilers()), sep=';')"
    stand_in_compiler(bare, "clang++")
    assert run_backend(project, body) == "clang++ (stand-in) 1.0\n"
    stand_in_compiler(bare, "g++")
    assert run_backend(project, body) == "g++ (stand-in) 1.0;clang++ (stand-in) 1.0\n"
    said = run_backend(project, body, CXX="no-such-compiler -m64")
    assert said == "no-such-compiler -m64;g++ (stand-in) 1.0;clang++ (stand-in) 1.0\n"


def test_a_machine_without_levels_needs_no_compiler(project: Path, bare: Path) -> None:
    said = run_backend(project, "backend.LEVELS = ()\nprint(backend.get_requires_for_build_wheel())")
    assert said.splitlines()[-1] == NOTHING


def test_offline_ziglang_is_asked_for_only_where_a_folder_holds_it(project: Path, bare: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    assert asked(project, PIP_NO_INDEX="1") == NOTHING
    assert asked(project, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(shelf)) == NOTHING
    (shelf / "ziglang-0.16.0-py3-none-any.whl").touch()
    assert asked(project, PIP_NO_INDEX="1", PIP_FIND_LINKS=f"/none {shelf}") == NOTHING
    (shelf / f"ziglang-0.17.1-py3-none-manylinux_2_12_{platform.machine()}.whl").touch()
    for links in (f"/none {shelf}", shelf.as_uri()):
        assert asked(project, PIP_NO_INDEX="true", PIP_FIND_LINKS=links) == ZIGLANG
    assert asked(project, PIP_NO_INDEX="1", PIP_FIND_LINKS="https://wheels.example.org/") == ZIGLANG
    assert asked(project, PIP_NO_INDEX="0") == ZIGLANG


def test_a_setuptools_that_is_too_old_is_named(project: Path) -> None:
    """As in a new environment, where nothing brings a newer one if builds are not isolated."""
    requires = (project / "pyproject.toml").read_text()
    assert 'requires = ["setuptools>=77"]' in requires
    body = "import setuptools\nsetuptools.__version__ = '65.5.0'\nimport build_backend"
    ended = subprocess.run([sys.executable, "-c", body], cwd=project, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "ImportError: setuptools 65.5.0 is too old to build this project without isolation:"
        f" {shlex.quote(sys.executable)} -m pip install 'setuptools>=77'"
    )


COMPILE = "import pathlib\nprint(*backend.compile_levels(pathlib.Path({!r})), sep='\\n')"


def test_without_a_compiler_every_level_says_so(project: Path, bare: Path, tmp_path: Path) -> None:
    said = run_backend(project, COMPILE.format(str(tmp_path / "lib"))).splitlines()
    assert [line.split()[0] for line in said] == [level.name for level in HERE]
    assert all(
        "no C++ compiler: set CXX, or install g++, clang++ or the Python package ziglang" in line for line in said
    )
    assert all(row["compiler"] is None and row["complaint"] for row in record(tmp_path / "lib").values())


def test_a_level_is_compiled_again_for_another_compiler_and_other_sources(
    root: Path, bare: Path, tmp_path: Path
) -> None:
    own, lib = copy_project(root, tmp_path / "project"), tmp_path / "lib"
    body = COMPILE.format(str(lib))

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in lib.glob("*.so")}

    stand_in_compiler(bare, "clang++")
    assert run_backend(own, body).strip() == ""
    first = times()
    assert len(first) == len(HERE)
    run_backend(own, body)
    assert times() == first, "nothing has changed"
    stand_in_compiler(bare, "g++")
    run_backend(own, body)
    second = times()
    assert not set(second.values()) & set(first.values())
    assert {row["compiler"] for row in record(lib).values()} == {"g++ (stand-in) 1.0"}
    header = own / "atb_models" / "ops" / "native" / "csrc" / "api.h"
    header.write_text(header.read_text() + "// changed\n")
    run_backend(own, body)
    assert not set(times().values()) & set(second.values())


def test_what_another_compiler_made_stays_where_a_later_one_fails(project: Path, bare: Path, tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    stand_in_compiler(bare, "clang++")
    run_backend(project, COMPILE.format(str(lib)))
    stand_in_compiler(bare, "g++", fails="unknown option -mavx512f")
    said = run_backend(project, COMPILE.format(str(lib))).splitlines()
    made_by = {name: row["compiler"].split()[0] for name, row in record(lib).items()}
    assert made_by == {level.name: "clang++" if "avx512" in level.name else "g++" for level in HERE}
    assert len([line for line in said if "is not built: unknown option -mavx512f" in line]) == sum(
        "avx512" in level.name for level in HERE
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the stand-in fails for a level of x86-64")
def test_a_compiler_that_cannot_make_a_level_leaves_it_out(project: Path, bare: Path, tmp_path: Path) -> None:
    stand_in_compiler(bare, fails="unknown option -mavx512f")
    run_backend(project, COMPILE.format(str(tmp_path)))
    assert [path.name for path in tmp_path.glob("*.so")] == ["atb_ops_avx2.so"]
    assert record(tmp_path)["avx512"]["complaint"] == "unknown option -mavx512f\nmore"


@pytest.fixture(scope="module")
def wheel(root: Path, built: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the machine's first level, whose library was compiled from the same sources before these tests."""
    own = copy_project(root, tmp_path_factory.mktemp("wheel") / "project")
    compiler = stand_in_compiler(own / "bin", makes=library_path(HERE[0]))
    run_backend(own, "backend.LEVELS = backend.LEVELS[:1]\nbackend.build_wheel('dist')", CXX=str(compiler))
    (made,) = (own / "dist").iterdir()
    return made


def test_a_wheel_serves_every_python_and_old_systems(wheel: Path) -> None:
    assert wheel.name == f"atb_models-0.1.0-py3-none-manylinux_2_17_{platform.machine()}.whl"
    with zipfile.ZipFile(wheel) as archive:
        said = archive.read("atb_models-0.1.0.dist-info/WHEEL").decode()
    assert "Root-Is-Purelib: false" in said and f"Tag: py3-none-manylinux_2_17_{platform.machine()}\n" in said


def test_a_wheel_holds_the_library_and_its_sources(wheel: Path, root: Path) -> None:
    native = root / "atb_models" / "ops" / "native"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("atb_models/ops/native/")}
    sources = {path.relative_to(root).as_posix() for path in native.rglob("*") if path.suffix in (".py", ".cpp", ".h")}
    built = {f"atb_models/ops/native/lib/{name}" for name in (f"atb_ops_{HERE[0].name}.so", RECORD)}
    assert names == sources | built


def test_a_wheel_holds_the_published_configurations(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("atb_models/published/")}
    assert held == {"atb_models/published/__init__.py", *(f"atb_models/published/{one}/config.json" for one in NAMES)}


def test_the_library_needs_no_newer_glibc(wheel: Path, tmp_path: Path) -> None:
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump, of binutils")
    name = f"atb_models/ops/native/lib/atb_ops_{HERE[0].name}.so"
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(name, tmp_path)
    symbols = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True).stdout
    needed = [tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", symbols)]
    assert needed and max(needed) <= (2, 17), symbols
    linked = subprocess.run(["objdump", "-p", library], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"NEEDED +(\S+)", linked)) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}


@pytest.mark.parametrize(
    ("glibc", "tag"),
    [("GLIBC_2.14", "manylinux_2_17"), ("GLIBC_2.17 GLIBC_2.34 GLIBC_2.2.5", "manylinux_2_34")],
)
def test_the_tag_follows_from_the_symbols(root: Path, bare: Path, tmp_path: Path, glibc: str, tag: str) -> None:
    own = copy_project(root, tmp_path / "project")
    stand_in_compiler(bare, glibc=glibc)
    run_backend(own, "backend.build_wheel('dist')")
    (made,) = (own / "dist").iterdir()
    assert made.name == f"atb_models-0.1.0-py3-none-{tag}_{platform.machine()}.whl"
    with zipfile.ZipFile(made) as archive:
        built = [name for name in archive.namelist() if name.endswith(".so")]
    assert len(built) == len(HERE)


def test_a_wheel_without_a_compiler_is_for_any_machine(root: Path, bare: Path, tmp_path: Path) -> None:
    own = copy_project(root, tmp_path / "project")
    said = run_backend(own, "backend.build_wheel('dist')")
    (made,) = (own / "dist").iterdir()
    assert made.name == "atb_models-0.1.0-py3-none-any.whl", said


def test_an_editable_build_compiles_into_the_tree(root: Path, bare: Path, tmp_path: Path) -> None:
    own = copy_project(root, tmp_path / "project")
    stand_in_compiler(bare)
    run_backend(own, "backend.build_editable('dist')")
    (made,) = (own / "dist").iterdir()
    lib = own / "atb_models" / "ops" / "native" / "lib"
    assert {path.name for path in lib.iterdir()} == {RECORD, *(f"atb_ops_{level.name}.so" for level in HERE)}
    with zipfile.ZipFile(made) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == []
    (bare / "g++").unlink()
    assert asked(own, "editable") == NOTHING, "the tree holds what these sources make"
    (lib / f"atb_ops_{HERE[0].name}.so").unlink()
    assert asked(own, "editable") == ZIGLANG


def test_a_source_distribution_builds_the_same(root: Path, bare: Path, tmp_path: Path) -> None:
    own = copy_project(root, tmp_path / "project")
    run_backend(own, "backend.build_sdist('dist')")
    (made,) = (own / "dist").iterdir()
    shutil.unpack_archive(made, tmp_path, filter="data")
    unpacked = tmp_path / made.name.removesuffix(".tar.gz")
    sources = own / "atb_models" / "ops" / "native" / "csrc"
    expected = {path.relative_to(own) for path in sources.rglob("*") if path.is_file()}
    assert {path.relative_to(unpacked) for path in unpacked.glob("atb_models/ops/native/csrc/**/*.*")} == expected
    stand_in_compiler(bare)
    run_backend(unpacked, "backend.build_wheel('dist')")
    assert [path.suffix for path in (unpacked / "dist").iterdir()] == [".whl"]
