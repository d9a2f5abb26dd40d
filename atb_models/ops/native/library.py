"""Choose a level of the library for this CPU, and load it.

ATB_CPU_ISA forces a level, or `reference` for none. The threads are those of the OpenMP runtime that torch has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shlex
import sys
import threading
from ctypes import CDLL, POINTER, c_double, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atb_models import env
from atb_models.errors import ConfigError
from atb_models.ops.native import structs
from atb_models.ops.native.build import FOLDER, Level, fits, levels_of, library_path, record

REFERENCE = "reference"
BUILD = shlex.join([sys.executable or "python3", "-m", "atb_models.ops.native.build"])


@dataclass(frozen=True)
class LevelChoice:
    """The level that serves, None for the reference, and why it is this one."""

    level: Level | None
    why: str

    def __str__(self) -> str:
        return f"{self.level.name if self.level else REFERENCE} ({self.why})"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets that the kernel names: `flags` on x86-64, `Features` on aarch64."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def choose(forced: str | None, flags: frozenset[str], machine: str | None = None, folder: Path = FOLDER) -> LevelChoice:
    """The best level that this CPU has and that was built; `forced` names one, or the reference.

    Raises ConfigError where the forced one is unknown, beyond this CPU, or not built.
    """
    machine = machine or platform.machine()
    levels = levels_of(machine)
    possible = [level for level in levels if level.needs <= flags]
    if forced is not None:
        return _forced(forced, possible, levels, flags, folder)
    complaint = "" if possible else f"the CPU has none of {', '.join(level.name for level in levels) or 'the levels'}"
    for level in reversed(possible):
        if missing := unusable(level, folder):
            complaint = complaint or missing
        elif complaint:
            return LevelChoice(level, f"not the best one: {complaint}")
        else:
            return LevelChoice(level, "the best that the CPU has")
    return LevelChoice(None, complaint)


def _forced(
    forced: str, possible: list[Level], levels: tuple[Level, ...], flags: frozenset[str], folder: Path
) -> LevelChoice:
    if forced == REFERENCE:
        return LevelChoice(None, "ATB_CPU_ISA")
    names = ", ".join([REFERENCE, *(level.name for level in possible)])
    for level in levels:
        if level.name == forced:
            if lacking := sorted(level.needs - flags):
                raise ConfigError(
                    f"ATB_CPU_ISA={forced}, but this CPU lacks {', '.join(lacking)}; possible here: {names}"
                )
            if missing := unusable(level, folder):
                raise ConfigError(f"ATB_CPU_ISA={forced}, but {missing}; possible here: {names}")
            return LevelChoice(level, "ATB_CPU_ISA")
    raise ConfigError(f"ATB_CPU_ISA={forced} is no instruction set of this CPU; possible here: {names}")


def unusable(level: Level, folder: Path = FOLDER) -> str | None:
    """Why the library of a level cannot be loaded from `folder`; None where it can."""
    if fits(level, folder):
        return None
    path = library_path(level, folder)
    if path.is_file():
        return f"{path} was built from other sources: {BUILD}"
    complaint = record(folder).get(level.name, {}).get("complaint")
    lines = (complaint or "").splitlines()
    return f"{path} was not built{f' ({lines[0]})' if lines else ''}: {BUILD}"


class Library:
    """One level, loaded: the C functions by name, each of which takes one of `structs`."""

    def __init__(self, level: Level, folder: Path = FOLDER) -> None:
        self.level = level
        self._cdll = CDLL(str(library_path(level, folder)))
        self._cdll.atb_use_openmp.argtypes = [c_void_p, c_void_p]
        runtime = openmp()
        if runtime is not None:
            self._cdll.atb_use_openmp(*runtime)
        self.attention, self.attention_scratch = self._operation("attention", structs.AttentionCall)
        self.latent_attention, self.latent_attention_scratch = self._operation("latent_attention", structs.LatentCall)
        self.linear, self.linear_scratch = self._operation("linear", structs.LinearCall)
        self.experts, self.experts_scratch = self._operation("experts", structs.ExpertsCall)
        self.gating, self.gating_scratch = self._operation("gating", structs.GatingCall)
        self.norm = self._function("atb_norm", c_int, POINTER(structs.NormCall))
        self.swiglu = self._function("atb_swiglu", c_int, POINTER(structs.SwigluCall))
        self.shared_gate = self._function("atb_shared_gate", c_int, POINTER(structs.SharedGateCall))
        self.top_logits = self._function("atb_top_logits", c_int, POINTER(structs.TopLogitsCall))
        self.rope_tables = self._function("atb_rope_tables", c_int, POINTER(structs.RopeTablesCall))
        self.rope = self._function("atb_rope", c_int, POINTER(structs.RopeCall))
        self.latent_rope = self._function("atb_latent_rope", c_int, POINTER(structs.LatentRopeCall))
        self.attention_sublayer = self._function(
            "atb_attention_sublayer",
            c_int,
            POINTER(structs.AttentionLayer),
            POINTER(structs.AttentionStep),
            POINTER(structs.SublayerCall),
        )
        self.feed_forward_sublayer = self._function(
            "atb_feed_forward_sublayer", c_int, POINTER(structs.FeedForwardLayer), POINTER(structs.SublayerCall)
        )
        self.decoder = self._function("atb_decoder", c_int, POINTER(structs.DecoderModel), POINTER(structs.DecoderCall))
        self.pack = self._function("atb_pack", c_int, POINTER(structs.PackCall))
        measured = (c_int, c_int, POINTER(c_int32))
        self.limit_read = self._function("atb_limit_read", c_double, c_void_p, c_int64, *measured)
        self.limit_floats, self.limit_bf16, self.limit_int8 = (
            self._function(f"atb_limit_{name}", c_double, *measured) for name in ("floats", "bf16", "int8")
        )

    def _operation(self, name: str, call: Any) -> tuple[Any, Any]:
        """The function that runs a call, and the one that tells the floats of scratch it needs."""
        return (
            self._function(f"atb_{name}", c_int, POINTER(call)),
            self._function(f"atb_{name}_scratch", c_int64, POINTER(call)),
        )

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._cdll, name)
        function.restype, function.argtypes = result, list(arguments)
        return function


@functools.cache
def load(name: str) -> Library:
    """The library of the level `name`. Raises ConfigError like `choose`."""
    choice = choose(name, cpu_flags())
    assert choice.level is not None, "the reference is no library"
    return Library(choice.level)


def active() -> LevelChoice:
    """What serves in this process."""
    return choose(env.get("ATB_CPU_ISA"), cpu_flags())


@functools.cache
def openmp() -> tuple[int, int] | None:
    """Addresses of GOMP_parallel and omp_get_num_threads in the runtime that torch has loaded, None without one.

    The runtimes of GCC, LLVM and Intel all have both.
    """
    torch.get_num_threads()  # whatever torch loads late is loaded now
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split(maxsplit=5)[5].strip() for line in maps if "omp" in line and line.count("/")}
    for file in sorted(files):
        if re.match(r"lib(gomp|iomp5|omp)\b", os.path.basename(file)):
            runtime = CDLL(file)
            try:
                functions = runtime.GOMP_parallel, runtime.omp_get_num_threads
            except AttributeError:
                continue
            first, second = (ctypes.cast(function, c_void_p).value for function in functions)
            assert first is not None and second is not None
            return first, second
    return None


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# A child made by fork has the runtime's memory but none of its threads: it would wait for them for ever.
os.register_at_fork(after_in_child=_after_fork)


def threads(wanted: int | None = None) -> int:
    """Threads that a call may use: the wanted ones, else torch's number."""
    return 1 if _forked else wanted or torch.get_num_threads()


class _Scratch(threading.local):
    tensor: torch.Tensor | None = None
    held: tuple[int | None, int] = (None, 0)  # its address and size


_scratch = _Scratch()


def held_scratch() -> tuple[int | None, int]:
    """Address and number of the floats that belong to this Python thread until its next call; they are kept."""
    return _scratch.held


def grown_scratch(floats: int) -> tuple[int | None, int]:
    """`held_scratch` after it has grown to so many floats, if there were fewer."""
    if _scratch.held[1] < floats:
        _scratch.tensor, _scratch.held = None, (None, 0)  # before the new one is made
        made = _scratch.tensor = torch.empty(floats, dtype=torch.float32, device="cpu")
        _scratch.held = made.data_ptr(), floats
    return _scratch.held


def scratch(floats: int) -> int | None:
    """Address of so many floats that belong to this Python thread until its next call."""
    return grown_scratch(floats)[0]
