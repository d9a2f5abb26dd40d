"""Which level is chosen and why, and that a wrong wish is refused with what is possible."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from atb_models.errors import ConfigError
from atb_models.ops.native import library as loader
from atb_models.ops.native.build import LEVELS as ALL
from atb_models.ops.native.build import levels_of, library_path, source_id
from atb_models.ops.native.library import Library, choose, cpu_flags, openmp
from tests.native.cases import LEVELS

AVX2 = frozenset({"avx2", "fma", "f16c", "sse2"})
ZEN4 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Stand-ins for all libraries: what is looked for before one is loaded."""
    for level in ALL:
        library_path(level, tmp_path).write_text(f"atb-source-id:{source_id()}")
    return tmp_path


def test_levels_of_this_machine(built: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        others = [level.name for level in ALL if level.name not in built]
        print(f"\nnative levels tested here: {', '.join(built)}; not: {', '.join(others)}")
    best = choose(None, cpu_flags())
    assert best.level is not None and best.level.name == built[-1] and best.why == "the best that the CPU has"


def test_best_level_of_a_cpu(folder: Path) -> None:
    assert str(choose(None, ZEN4, "x86_64", folder)) == "avx512bf16 (the best that the CPU has)"
    assert str(choose(None, ZEN4 - {"avx512_bf16"}, "x86_64", folder)) == "avx512 (the best that the CPU has)"
    assert str(choose(None, ZEN4 - {"avx512_vnni"}, "x86_64", folder)) == "avx2 (the best that the CPU has)"
    assert choose(None, frozenset({"asimd", "asimdhp", "asimddp"}), "aarch64", folder).level == levels_of("aarch64")[-1]
    old = choose(None, frozenset({"sse2"}), "x86_64", folder)
    assert old.level is None and old.why == "the CPU has none of avx2, avx512, avx512bf16"
    assert choose(None, AVX2, "riscv64", folder).level is None


def test_what_is_missing_is_said(folder: Path) -> None:
    gone, stale = (library_path(level, folder) for level in reversed(levels_of("x86_64")[1:]))
    gone.unlink()
    stale.write_text("atb-source-id:0123456789abcdef")
    choice = choose(None, ZEN4, "x86_64", folder)
    assert choice.level is not None and choice.level.name == "avx2"
    assert choice.why == f"not the best one: {gone} was not built: {loader.BUILD}"
    with pytest.raises(ConfigError, match=r"avx512.so was built from other sources: \S*python"):
        choose("avx512", ZEN4, "x86_64", folder)
    library_path(levels_of("x86_64")[0], folder).unlink()
    none = choose(None, AVX2, "x86_64", folder)
    assert none.level is None and f"avx2.so was not built: {loader.BUILD}" in none.why


@pytest.mark.parametrize(
    "forced, message",
    [
        ("sse2", "ATB_CPU_ISA=sse2 is no instruction set of this CPU; possible here: reference, avx2"),
        ("neon", "ATB_CPU_ISA=neon is no instruction set of this CPU; possible here: reference, avx2"),
        (
            "avx512",
            "ATB_CPU_ISA=avx512, but this CPU lacks avx512_vnni, avx512bw, avx512dq, avx512f, avx512vl; possible",
        ),
    ],
)
def test_forced_level_that_cannot_be(folder: Path, forced: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose(forced, AVX2, "x86_64", folder)
    assert str(refused.value).startswith(message)
    assert refused.value.exit_status == 2


def test_forced_level(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(choose("avx2", ZEN4, "x86_64", folder)) == "avx2 (ATB_CPU_ISA)"
    assert str(choose("reference", ZEN4, "x86_64", folder)) == "reference (ATB_CPU_ISA)"
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    assert loader.active().level is None
    monkeypatch.setenv("ATB_CPU_ISA", "no-such")
    with pytest.raises(ConfigError, match="ATB_CPU_ISA=no-such"):
        loader.active()


def test_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\nbugs\t\t: spectre\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(info) == {"fpu", "avx2", "fma"}
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert cpu_flags(info) == {"fp", "asimd", "asimddp"}
    assert cpu_flags(tmp_path / "none") == frozenset()


def test_library_needs_no_c_plus_plus(built: list[str]) -> None:
    """It must load beside any torch, so it brings no runtime of its own."""
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("needs ldd")
    for level in levels_of(platform.machine()):
        if level.name in LEVELS:
            needed = subprocess.run([ldd, library_path(level)], capture_output=True, text=True, check=True).stdout
            assert "libc.so" in needed
            assert not any(name in needed for name in ("libstdc++", "libc++", "libgcc_s", "libgomp", "libm.so"))


def test_threads_are_torchs(library: Library) -> None:
    """torch's own wheels bring an OpenMP runtime; without one the library starts threads for a call."""
    runtime = openmp()
    assert runtime is not None and all(runtime)
    assert library.level.name in LEVELS
