"""How the command line programs end: one line for a user's mistake, and a status that is not 0.

A rank started by `atb_models.launch` writes its error where ATB_LAUNCHER_ERRORS says instead of printing it, so that
the launcher can say once what eight ranks found.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from atb_models.command.extras import extra_of
from atb_models.errors import AtbError, RankError
from atb_models.wording import install_command, message_lines

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})  # what a write to stdout may end with


def run_guarded(program: Callable[[], int | None]) -> int:
    """The exit status of `program`, its own or that of the error it ended with. SystemExit passes through."""
    _open_missing_streams()
    try:
        try:
            status = program() or 0
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return status
    except AtbError as error:
        return report(str(error), error.exit_status, is_consequence=isinstance(error, RankError))
    except KeyboardInterrupt:
        return report("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our stdout has left
        _silence(sys.stdout)
        return report("")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None and not _stdout_works():
            _silence(sys.stdout)
            return report(f"stdout cannot be written: {error.strerror}")
        return report(
            _shortage(error) or _missing_package(error) or "internal error\n" + traceback.format_exc().rstrip()
        )


def report(message: str, status: int = 1, *, is_consequence: bool = False) -> int:
    """Say why this process ends with `status`, which is returned: to the launcher if it listens, else on stderr.

    is_consequence: only another rank's end was seen. An empty message: there is nobody to tell.
    """
    # Not by env.get, which raises for a bad value: an error is told whatever the environment is.
    place, rank = os.environ.get("ATB_LAUNCHER_ERRORS"), os.environ.get("RANK", "")
    if place and rank.isdecimal():
        told = {"rank": int(rank), "message": message, "status": status, "is_consequence": is_consequence}
        try:
            with open(place, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(told) + "\n")
            return status
        except OSError:
            pass  # the launcher is gone
    print_error(message)
    return status


def _shortage(error: Exception) -> str | None:
    """What to say where an allocation failed, Python's or torch's (which on a CPU has no exception of its own)."""
    if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
        return None
    cause = message_lines(error)[0]
    return (
        "out of memory: something else took what was free at the start, or the run went beyond its plan;"
        f" lower --max_batch_size, --max_prefill_tokens or --kv_blocks ({cause})"
    )


def _missing_package(error: Exception) -> str | None:
    """What to say of an interpreter without torch, say, or without room for it; None for any other error."""
    if isinstance(error, ImportError) and re.search("map segment|allocate memory", str(error)):
        return f"torch cannot be loaded, there is too little memory or address space (ulimit -v): {error}"
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name is None or name.split(".")[0] == "atb_models":
        return None
    extra = extra_of(name)
    remedy = (
        "bash examples/quickstart.sh makes an environment that has it"
        if extra is None
        else f"the extra {extra} brings it: {install_command(extra)}"
    )
    return f"{sys.executable} has no module {name}; {remedy}"


def print_error(message: str) -> None:
    """The one form of an error on stderr; nothing for an empty message or where stderr cannot be written."""
    if message:
        try:
            print(f"atb-models: error: {message}", file=sys.stderr, flush=True)
        except OSError:
            _silence(sys.stderr)


def _open_missing_streams() -> None:
    """Python has None for a stream that was closed when it started."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it lives as long as the process)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _stdout_works() -> bool:
    """Tried with a line's end: an error does not say which stream it was."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _silence(stream: TextIO) -> None:
    """Keep the interpreter from flushing into it again at its end."""
    with suppress(OSError):  # a test's stream is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
