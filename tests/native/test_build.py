"""The command that compiles the library."""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path

import pytest

from atb_models.ops.native import build as builder
from atb_models.ops.native.build import Compiler, build, find_compiler, levels_of, library_path, main


def script(folder: Path, body: str) -> Compiler:
    """A compiler that is a shell script."""
    path = folder / "cxx"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Compiler((str(path),))


def test_compiler_is_looked_for_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "ccache my-g++ -m64")
    assert find_compiler() == Compiler(("ccache", "my-g++", "-m64"))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("clang++", "g++"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
        assert find_compiler() == Compiler((str(tmp_path / name),))
    for name in ("clang++", "g++"):
        (tmp_path / name).unlink()
    monkeypatch.setattr(builder.importlib.util, "find_spec", lambda name: object() if name == "ziglang" else None)
    assert find_compiler() == Compiler((sys.executable, "-m", "ziglang", "c++"), zig=True)
    monkeypatch.setattr(builder.importlib.util, "find_spec", lambda name: None)
    assert find_compiler() is None


def test_library_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    level = levels_of("x86_64")[0]
    good = script(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo compiled > "$2"')
    (outcome,) = build([level], good, tmp_path / "lib")
    assert outcome.complaint is None and outcome.path == library_path(level, tmp_path / "lib")
    assert outcome.path.read_text() == "compiled\n"
    bad = script(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; echo no such option >&2; exit 3')
    (outcome,) = build([level], bad, tmp_path / "lib")
    assert outcome.complaint == "no such option" and outcome.path.read_text() == "compiled\n"
    assert [path.name for path in (tmp_path / "lib").glob("*.so*")] == [outcome.path.name]
    (outcome,) = build([level], Compiler((str(tmp_path / "none"),)), tmp_path / "lib")
    assert outcome.complaint == f"{tmp_path / 'none'}: No such file or directory"


def test_zig_keeps_its_cache_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", "/users")
    monkeypatch.delenv("ZIG_LOCAL_CACHE_DIR", raising=False)
    told = script(tmp_path, 'echo "$ZIG_GLOBAL_CACHE_DIR $ZIG_LOCAL_CACHE_DIR" >&2; exit 1')
    (outcome,) = build([levels_of("x86_64")[0]], told, tmp_path / "lib")
    users, ours = str(outcome.complaint).split()
    assert users == "/users" and ours.startswith(tempfile.gettempdir())


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    names = [level.name for level in levels_of(platform.machine())]
    good = script(tmp_path, 'while [ "$1" != -o ]; do shift; done; echo compiled > "$2"')
    monkeypatch.setenv("CXX", good.command[0])
    assert main(["--folder", str(tmp_path / "lib")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [f"{name}: {tmp_path}/lib/atb_ops_{name}.so" for name in names]
    assert main(["--folder", str(tmp_path / "one"), names[0]]) == 0
    assert [path.name for path in (tmp_path / "one").glob("*.so*")] == [f"atb_ops_{names[0]}.so"]
    monkeypatch.setenv("CXX", "false")
    assert main(["--folder", str(tmp_path / "lib"), names[0]]) == 1
    assert "false ended with 1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["mmx"])
    assert ended.value.code == 2 and "mmx" in capsys.readouterr().err
    monkeypatch.setattr(builder, "find_compiler", lambda: None)
    assert main([]) == 1
    assert "set CXX, or install g++, clang++ or the Python package ziglang" in capsys.readouterr().err


def test_options_of_zig() -> None:
    zig = Compiler(("zig", "c++"), zig=True)
    for level in builder.LEVELS:
        options = zig.options(level)
        assert options[:3] == ("-target", f"{level.machine}-linux-gnu.2.17", f"-mcpu={level.zig}")
