"""The loops that measure this machine's limits: their instructions, and what they may give at most.

A compiler that takes a loop apart makes a limit of several times the machine's, and one that keeps the sums in memory
makes less of it; both look like a figure.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from atb_models.ops.native import limits
from atb_models.ops.native.build import COMMON, LEVELS, SOURCES, Level, find_compiler, fits, library_path
from atb_models.ops.native.library import Library

VECTORS = {"avx2": ("ymm", 8), "avx512": ("zmm", 16), "avx512bf16": ("zmm", 16), "neon": ("v", 4)}
BRANCHES = re.compile(r"(j[a-z]+|b\.[a-z]+|cbnz)\b")


@dataclass(frozen=True)
class Code:
    """The instructions of a level, in a file that `objdump` reads."""

    level: str
    path: Path
    objdump: str


@dataclass(frozen=True)
class Loop:
    """The instructions between a backward branch and its target, as objdump spells them."""

    body: list[str]

    def count(self, pattern: str) -> int:
        return sum(bool(re.match(pattern, line)) for line in self.body)


def chains(level: str) -> int:
    """Sums that do not depend on each other; AVX2 has 16 registers, the others 32."""
    return 12 if level == "avx2" else 16


@pytest.fixture(scope="module", params=[level.name for level in LEVELS])
def code(request: pytest.FixtureRequest, built: list[str], tmp_path_factory: pytest.TempPathFactory) -> Code:
    """Each level: the library where it was built, for another machine what a cross compiler makes of the loops."""
    level = next(one for one in LEVELS if one.name == request.param)
    here = level.machine == platform.machine()
    prefix = "" if here else f"{level.machine}-linux-gnu-"
    objdump, compiler = shutil.which(f"{prefix}objdump"), shutil.which(f"{prefix}g++")
    if objdump is None:
        pytest.skip(f"needs {prefix}objdump (Debian package binutils)")
    if here:
        if not fits(level):
            pytest.skip(f"{level.name} was not built here")
        return Code(level.name, library_path(level), objdump)
    if compiler is None:
        pytest.skip(f"needs {prefix}g++ for {level.name}")
    done = tmp_path_factory.mktemp(level.name) / "limits.o"
    options = [option for option in COMMON if option != "-shared" and not option.startswith("-Wl")]
    source = [f"-I{SOURCES}", "-c", str(SOURCES / "limits.cpp"), "-o", str(done)]
    subprocess.run([compiler, *options, *level.options, *source], check=True)
    return Code(level.name, done, objdump)


def disassembled(code: Code, function: str) -> list[tuple[int, str]]:
    """Address and instruction of each line; nothing where the level has no such function."""
    command = [code.objdump, "-d", "--no-show-raw-insn", f"--disassemble={function}", str(code.path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(int(at, 16), what.strip()) for at, what in re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", text, re.MULTILINE)]


def loop_of(code: Code, function: str) -> Loop:
    """The only loop of a function."""
    lines = disassembled(code, function)
    loops = []
    for at, what in lines:
        target = re.search(r"\s(?:0x)?([0-9a-f]+) <", what)
        if BRANCHES.match(what) and target and lines[0][0] <= int(target[1], 16) <= at:
            loops.append((int(target[1], 16), at))
    assert len(loops) == 1, f"{code.level} {function}: {len(loops)} loops in {lines}"
    ((first, last),) = loops
    return Loop([what for at, what in lines if first <= at <= last])


def check_chains(code: Code, function: str, instruction: str) -> None:
    """The loop multiplies and adds in registers, once a chain, and does nothing else but count."""
    loop, number = loop_of(code, function), chains(code.level)
    register = VECTORS[code.level][0]
    found = [line for line in loop.body if re.match(instruction, line)]
    assert len(found) % number == 0 and len(found) >= number, loop.body
    assert not any("(" in line or "[" in line for line in found), "sums or factors in memory"
    sums = {line.split(",")[0].split()[-1] if register == "v" else line.split(",")[-1].strip() for line in found}
    assert len(sums) == number and all(register in name for name in sums), "each chain in a register of its own"
    assert len(loop.body) - len(found) <= 4, f"more than the counter and the branch: {loop.body}"


def test_loops_have_the_instructions_of_their_level(code: Code) -> None:
    level = code.level
    fma = r"fmla\b.*\.4s" if level == "neon" else r"vfmadd\d+ps\b"
    check_chains(code, "atb_loop_floats", fma)
    for function, instruction, has in (
        ("atb_loop_bf16", r"vdpbf16ps\b", level == "avx512bf16"),
        ("atb_loop_int8", r"sdot\b" if level == "neon" else r"vpdpbusd\b", level != "avx2"),
    ):
        if has:
            check_chains(code, function, instruction)
        else:
            assert not disassembled(code, function), f"{level} has {function}"


def test_the_read_loop_loads_every_byte(code: Code) -> None:
    loop = loop_of(code, "atb_loop_read")
    register, lanes = VECTORS[code.level]
    if register == "v":
        loads = loop.count(r"(ldr|ldur)\s+q") + 2 * loop.count(r"ldp\s+q")
    else:
        loads = sum(register in line and re.search(r"\(%r", line) is not None for line in loop.body)
    assert loads % (4 * 64 // (4 * lanes)) == 0 and loads > 0, "64 bytes of each of 4 places"
    assert loop.count(r"v?p?xor|eor") >= loads and loop.count("prefetch|prfm") == loads * 4 * lanes // 64


def peak(level: Level, hertz: float, per_lane: int) -> float:
    """Operations per second of one thread: two instructions in a cycle are the most that a processor begins."""
    return 2 * VECTORS[level.name][1] * per_lane * hertz


@pytest.fixture(scope="module")
def hertz(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The clock by a chain of additions, each of which takes one cycle: /proc/cpuinfo may not tell the real one."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler to measure the clock")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.cpp").write_text(CLOCK)
    options = ["-O2", "-shared", "-fPIC", str(folder / "clock.cpp"), "-o", str(folder / "clock.so")]
    subprocess.run([*compiler.command, *options], check=True, capture_output=True)
    clock = ctypes.CDLL(str(folder / "clock.so")).additions_per_second
    clock.restype = ctypes.c_double
    found = float(clock())
    assert 3e8 < found < 1e10, found
    return found


CLOCK = """
#include <time.h>
static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
extern "C" double additions_per_second() {
  double best = 1;
  long x = 1;
  for (int run = 0; run < 2000; run++) {
    const double start = now();
    for (int i = 0; i < 5000; i++) {
#define ADD asm volatile("" : "+r"(x)); x += x;
      ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD ADD
      asm volatile("" : "+r"(x));
    }
    const double seconds = now() - start;
    if (seconds < best) best = seconds;
  }
  return 5000 * 16 / best;
}
"""


def test_peaks_are_within_the_clock(library: Library, hertz: float) -> None:
    """Of one thread. A loop of which something was left out gives several times this; one in memory a small part."""
    floats = limits.float_rate(library, 1).value
    bf16, int8 = limits.bf16_rate(library, 1).value, limits.int8_rate(library, 1).value
    level = library.level
    assert 0.2 * peak(level, hertz, 2) < floats < 1.1 * peak(level, hertz, 2)
    assert (bf16 > 0) == (level.name == "avx512bf16") and (int8 > 0) == (level.name != "avx2")
    assert bf16 < 1.1 * peak(level, hertz, 4) and int8 < 1.1 * peak(level, hertz, 8)
    if bf16:
        assert bf16 > 0.2 * peak(level, hertz, 4)
    if int8:
        assert int8 > 0.2 * peak(level, hertz, 8)


def test_memory_is_read_at_less_than_a_register_a_cycle(library: Library, hertz: float) -> None:
    block = torch.ones(192 << 20, dtype=torch.uint8)
    rate = limits.read_rate(library, block, 1).value
    assert 1e8 < rate < hertz * 4 * VECTORS[library.level.name][1]


def test_threads_that_were_not_seen_are_counted(library: Library) -> None:
    """Two threads do about twice the work of one; on a busy machine as many as were seen are said."""
    one, two = (limits.float_rate(library, threads) for threads in (1, 2))
    assert (one.threads, one.together, two.threads) == (1, 1, 2) and two.together in (1, 2)
    assert 0.5 * one.value < two.value < 2.3 * one.value


def test_memory_is_shared_by_its_readers(library: Library) -> None:
    """What two threads read is counted as it is: twice what one of them read would be more than there is."""
    block = torch.ones(128 << 20, dtype=torch.uint8)
    few = limits.read_rate(library, block, 2)
    many = limits.read_rate(library, block, 2 * (os.cpu_count() or 1))
    assert 0 < many.together < many.threads or many.together == 0, "more threads than processors never run together"
    assert many.value < 1.6 * few.value * (2 if few.together < 2 else 1)
