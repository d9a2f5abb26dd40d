"""What a command says about the environment variables that are set: misspelt ones, and those without effect."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from functools import cache

from atb_models import env

# How like a name of the table another one must be to count as the same, misspelt: one or two letters in twenty.
MISSPELT = 0.9
# A longer form of a last word, as MASTER_ADDRESS for MASTER_ADDR, of names that are not short: CXXFLAGS is not CXX.
SHORTEST, LONGER = 8, re.compile("[A-Za-z]{1,3}")
# Of other programs, though like names of the table. The first tells the container runtime which devices to mount.
NOT_MISSPELT = (
    "ASCEND_VISIBLE_DEVICES", "HTTP_PROXY", "LOG_LEVEL", "PYTHON3", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF",
)  # fmt: skip
OTHER_COLLECTIVES = ("NCCL_", "RCCL_", "MCCL_")  # they have many of HCCL's names


def misspelt(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Names that nothing reads -> the name that was meant, None where that cannot be told.

    They begin like ours or are much like one of the table, and are not in it themselves.
    """
    found: dict[str, str | None] = {}
    for name in sorted(name for name in environ if environ[name] and name not in env.TABLE):
        meant = _meant(name)
        ours = name.startswith(env.OWN_PREFIXES)
        if ours or (meant is not None and not _is_for_libraries(name, meant)):
            found[name] = meant
    return found


def passed_on(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Names that look meant for the Ascend libraries and are not in the table: these read more than it has.

    With the name of the table that was probably meant, where there is one.
    """
    others = (
        name for name in environ if environ[name] and name.startswith(env.VENDOR_PREFIXES) and name not in env.TABLE
    )
    return {name: _meant(name) for name in sorted(set(others) - misspelt(environ).keys())}


@cache
def _meant(name: str) -> str | None:
    """The name of the table that `name` is most like, None where it is like none."""
    if name in NOT_MISSPELT or name.startswith(OTHER_COLLECTIVES):
        return None
    if near := difflib.get_close_matches(name, env.TABLE, n=1, cutoff=MISSPELT):
        return near[0]
    shorter = (known for known in env.TABLE if len(known) >= SHORTEST and name.startswith(known))
    return next((known for known in shorter if LONGER.fullmatch(name[len(known) :])), None)


def _is_for_libraries(name: str, meant: str) -> bool:
    """Whether the libraries, which know more names than the table, may read `name` although it is like `meant`."""
    return name.startswith(env.VENDOR_PREFIXES) and env.TABLE[meant].use == env.NPU


def with_hint(text: str, meant: str | None) -> str:
    """A name, or name and value, with the name that was probably meant."""
    return f"{text} (did you mean {meant}?)" if meant else text


def unread_line(names: Mapping[str, str | None]) -> str:
    """How names that nothing reads are told; the argument as from `misspelt`."""
    return f"set, but nothing here reads them: {_told(names)}"


def _told(names: Mapping[str, str | None]) -> str:
    return ", ".join(with_hint(name, names[name]) for name in sorted(names))


def unread_notice(device: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """At most three lines: the set variables that nothing reads, those for Ascend libraries, those without effect.

    What a launcher script exported by itself is not the user's and not reported.
    """
    environ = os.environ if environ is None else environ
    ours = environ.get("ATB_LAUNCHER_DEFAULTS", "").split()
    users = {name: environ[name] for name in sorted(environ) if environ[name] and name not in ours}
    of_use = {
        use: [name for name in users if name in env.TABLE and env.TABLE[name].use == use]
        for use in (env.LATER, env.NPU, env.ACCELERATOR)
    }
    unread, passed, lines = misspelt(users) | dict.fromkeys(of_use[env.LATER]), passed_on(users), []
    if unread:
        lines.append(f"{unread_line(unread)} (`atb-models env` lists what is read)")
    if passed and device == "npu":
        lines.append(f"passed on to the Ascend libraries, unknown to this program: {_told(passed)}")
    elif passed or (of_use[env.NPU] and device != "npu"):
        told = _told(passed | dict.fromkeys(of_use[env.NPU]))
        lines.append(f"passed on to the Ascend libraries, so without effect on {device}: {told}")
    if of_use[env.ACCELERATOR] and device == "cpu":
        names = ", ".join(of_use[env.ACCELERATOR])
        lines.append(f"set, but without effect on cpu, for they concern a device's own memory: {names}")
    return lines
