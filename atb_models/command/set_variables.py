"""What a command says about the environment variables that are set: misspelt ones, and those without effect."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from atb_models import env

# How like a name of the table another one must be to count as the same, misspelt: one or two letters in twenty.
MISSPELT = 0.9
# Of other programs, though like ours. This one tells the container runtime which devices to mount.
NOT_MISSPELT = ("ASCEND_VISIBLE_DEVICES",)


def misspelt(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Names that nothing reads -> the name that was meant, None where that cannot be told.

    They begin like ours or are much like one that we read, and are in the table neither.
    """
    read = [name for name, variable in env.TABLE.items() if variable.use in (env.READ, env.ACCELERATOR)]
    found: dict[str, str | None] = {}
    for name in sorted(name for name in environ if environ[name] and name not in (*env.TABLE, *NOT_MISSPELT)):
        meant = difflib.get_close_matches(name, read, n=1, cutoff=MISSPELT)
        if meant or name.startswith(env.OWN_PREFIXES):
            found[name] = meant[0] if meant else None
    return found


def passed_on(environ: Mapping[str, str]) -> list[str]:
    """Names that look meant for the Ascend libraries and are not in the table: these read more than it has."""
    others = (
        name for name in environ if environ[name] and name.startswith(env.VENDOR_PREFIXES) and name not in env.TABLE
    )
    return sorted(set(others) - misspelt(environ).keys())


def unread_line(names: Mapping[str, str | None]) -> str:
    """How names that nothing reads are told; the argument as from `misspelt`."""
    told = [f"{name} (did you mean {meant}?)" if meant else name for name, meant in names.items()]
    return f"set, but nothing here reads them: {', '.join(told)}"


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
        lines.append(f"passed on to the Ascend libraries, unknown to this program: {', '.join(passed)}")
    elif passed or (of_use[env.NPU] and device != "npu"):
        names = ", ".join(sorted(passed + of_use[env.NPU]))
        lines.append(f"passed on to the Ascend libraries, so without effect on {device}: {names}")
    if of_use[env.ACCELERATOR] and device == "cpu":
        names = ", ".join(of_use[env.ACCELERATOR])
        lines.append(f"set, but without effect on cpu, for they concern a device's own memory: {names}")
    return lines
