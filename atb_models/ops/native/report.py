"""What is said of the library: one line of the log, and the lines of `atb-models env`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from atb_models import env
from atb_models.ops.native.build import compilers, record
from atb_models.ops.native.library import LevelChoice, active, choose, cpu_flags

logger = logging.getLogger(__name__)


def describe(choice: LevelChoice) -> str:
    """The level, why it is this one, and what compiled it; of the reference what that means."""
    if choice.level is None:
        return f"{choice}; torch serves, slower"
    return f"{choice}, compiled by {record().get(choice.level.name, {}).get('compiler') or 'an unknown compiler'}"


def log_choice() -> None:
    """Say in the log which level serves this process, and why. Raises ConfigError for a bad ATB_CPU_ISA."""
    logger.info("CPU operations: %s", describe(active()))


def report_lines(environ: Mapping[str, str]) -> list[str]:
    """The level, and the C++ compilers that a build would find here. Raises ConfigError for a bad ATB_CPU_ISA."""
    choice = choose(env.get("ATB_CPU_ISA", environ), cpu_flags())
    here = ", ".join(compiler.version() for compiler in compilers()) or "none"
    return [f"CPU operations: {describe(choice)}", f"C++ compilers, the first is taken: {here}"]
