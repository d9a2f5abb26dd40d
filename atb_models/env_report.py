"""What `atb-models env` prints: versions and the table of variables with their current values."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import TextIO

from atb_models import __version__, env
from atb_models.command.set_variables import misspelt, passed_on, unread_line, with_hint
from atb_models.doctor import Unusual, cann, driver, nnal
from atb_models.errors import ConfigError

PACKAGES = ("torch", "torch_npu", "transformers", "tokenizers", "safetensors", "numpy")


def print_report(out: TextIO, environ: Mapping[str, str] | None = None) -> list[str]:
    """Write the report to `out`. Returns a line for each value that is not allowed."""
    environ = dict(os.environ if environ is None else environ)  # a copy: importing torch_npu sets further variables
    python = f"python {platform.python_version()} ({sys.executable})"
    print(f"atb-models {__version__}, {python}, {platform.platform()}", file=out)
    print(", ".join(f"{name} {_version(name)}" for name in PACKAGES), file=out)
    for name, look in (("driver", driver), ("CANN", cann), ("nnal", nnal), ("devices", _devices)):
        try:
            print(f"Ascend {name}: {look()}", file=out)
        except (Unusual, ConfigError, OSError, ValueError) as error:  # the last two: a file that cannot be read
            print(f"Ascend {name}: none seen; {error}", file=out)
    unusable = _print_cpu_operations(out, environ)
    rows = [("variable", "value", "default", "use", "meaning")]
    for v in env.TABLE.values():
        value = env.shown_value(v.name, environ.get(v.name, ""))
        rows.append((v.name, value or "-", v.default or "-", v.use, v.meaning))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    print(file=out)
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[4]]), file=out)
    if others := passed_on(environ):
        shown = ((f"{name}={env.shown_value(name, environ[name])}", meant) for name, meant in others.items())
        told = ", ".join(with_hint(text, meant) for text, meant in shown)
        print(f"\npassed on to the Ascend libraries, unknown to this program: {told}", file=out)
    if unread := misspelt(environ):
        print(f"\n{unread_line(unread)}", file=out)
    return problems(environ) + unusable


def _devices() -> str:
    env.set_default("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    if importlib.util.find_spec("torch_npu") is None:  # without torch, which takes seconds to import
        raise Unusual("torch_npu is not installed")
    from atb_models.machine import npu

    return npu.devices()


def _print_cpu_operations(out: TextIO, environ: Mapping[str, str]) -> list[str]:
    """Returns what is wrong with ATB_CPU_ISA, which only the CPU can tell."""
    try:
        from atb_models.ops.native.report import report_lines  # imports torch

        print("\n".join(report_lines(environ)), file=out)
    except (ImportError, ConfigError) as error:
        print(f"CPU operations: none; {error}", file=out)
        return [str(error)] if isinstance(error, ConfigError) else []
    return []


def problems(environ: Mapping[str, str] | None = None) -> list[str]:
    """An error message for each variable of the table whose value is not allowed."""
    environ = os.environ if environ is None else environ
    found = []
    for name in filter(environ.get, env.TABLE):
        try:
            env.get(name, environ)
        except ConfigError as error:
            found.append(str(error))
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"
