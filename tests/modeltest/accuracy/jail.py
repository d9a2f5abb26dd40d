"""Runs one generated program where it can do no harm. Started by sandbox.py inside namespaces of its own.

Before the program starts, as the first process of the namespaces: all mounts become read-only, those that lead to the
machine (/dev, /proc, /run, /sys) are covered by empty ones, and a small folder in memory becomes the working folder.
Then a child gives up its rights and runs the program; when this process ends, the kernel ends all that are left.
It may import nothing but the standard library: it runs without the environment's packages.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import select
import sys
from contextlib import suppress
from typing import Any

COVERED = ("/dev", "/run", "/sys", "/proc")  # /proc last: it lists the mounts
FOLDER_BYTES = 64 << 20
FILES, PROCESSES = 64, 32
NOBODY = 65534
SAID_BYTES = 1000  # of what the child says of its end
# linux/mount.h, linux/prctl.h, linux/capability.h
READ_ONLY, NO_SETUID, NO_DEVICES, REMOUNT, BIND, SUBMOUNTS = 1, 2, 4, 32, 4096, 16384
KEPT = {"noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
NO_NEW_PRIVILEGES = 38
CAPABILITY_VERSION = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Job: a JSON object on stdin; the program's end on stdout: the token (it ran through) or what went wrong."""
    job = json.load(sys.stdin)
    shut_in(job["folder"])
    nowhere = job["nowhere"]
    reader, writer = os.pipe()
    if not os.fork():
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        os.closerange(writer + 1, FILES)
        os.close(reader)
        give_up_rights(job["memory"], job["seconds"], as_nobody=job["as_nobody"])
        run(job["program"], writer, job["token"])
    os.close(writer)
    ready = select.select([reader], [], [], job["seconds"])[0]
    print(os.read(reader, SAID_BYTES).decode(errors="replace") or "ended early" if ready else "timed out", flush=True)


def shut_in(folder: str) -> None:
    """Make `folder` the only place that can be written, with Python's library under it; see the module's text.

    Raises OSError where the kernel refuses a part of it.
    """
    mount("tmpfs", folder, "tmpfs", NO_SETUID | NO_DEVICES, f"size={FOLDER_BYTES},mode=777")
    library = os.path.join(folder, ".python")
    os.mkdir(library)
    mount(sys.base_prefix, library, None, BIND | SUBMOUNTS)
    for path in COVERED[:-1]:
        if os.path.isdir(path):
            mount("tmpfs", path, "tmpfs", READ_ONLY)
    mounts = mounted()
    mount("tmpfs", COVERED[-1], "tmpfs", READ_ONLY)
    for place, options in mounts:
        if place != folder:
            make_read_only(place, options)
    move_library(library)
    os.chdir(folder)


def mounted() -> list[tuple[str, list[str]]]:
    """Place and options of each mount, from /proc/self/mountinfo (fields 5 and 6; blanks as octal escapes)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        fields = [line.split(" ") for line in stream]
    return [(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), f[4]), f[5].split(",")) for f in fields]


def make_read_only(place: str, options: list[str]) -> None:
    """Nothing happens to a mount that lies under another, or behind a folder this user cannot enter.

    Raises OSError for one that can be reached and stays writable.
    """
    flags = REMOUNT | BIND | READ_ONLY | NO_SETUID | NO_DEVICES
    with suppress(OSError):
        mount(None, place, None, flags | sum(KEPT.get(option, 0) for option in options))
    try:
        writable = not os.statvfs(place).f_flag & os.ST_RDONLY
    except OSError:
        return
    if writable:
        raise OSError(f"{place} cannot be made read-only")


def move_library(library: str) -> None:
    """Import from `library` henceforth: the interpreter's own folder may be closed to the user who runs the program."""

    def moved(path: str) -> str:
        inside = os.path.relpath(path, sys.base_prefix)
        return path if inside.startswith("..") else os.path.join(library, inside)

    sys.path[:] = [moved(path) for path in sys.path]
    for module in list(sys.modules.values()):
        if getattr(module, "__path__", None):
            module.__path__ = [moved(path) for path in module.__path__]


def give_up_rights(memory: int, seconds: float, *, as_nobody: bool) -> None:
    """No privileges, and limits on memory (bytes, each process), processor time, files and processes."""
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: FILES,
        resource.RLIMIT_NPROC: PROCESSES,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    if as_nobody:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    check(libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()))


def run(program: str, writer: int, token: str) -> None:
    """Run `program` as a main module, say how it ended, and end this process."""
    said = token
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        said = type(error).__name__
    os.write(writer, said[:SAID_BYTES].encode(errors="replace"))
    os._exit(0)


def mount(source: str | None, place: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). Raises OSError naming the place."""
    words: list[Any] = [None if word is None else os.fsencode(word) for word in (source, place, kind, data)]
    check(libc.mount(*words[:3], ctypes.c_ulong(flags), words[3]), place)


def check(result: int, *about: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *about)


if __name__ == "__main__":
    main()
