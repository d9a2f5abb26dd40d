"""Whether help is wanted in Chinese."""

from __future__ import annotations

import os
from collections.abc import Mapping


def chinese(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the locale of messages is a Chinese one: the first of LC_ALL, LC_MESSAGES and LANG that is set."""
    environ = os.environ if environ is None else environ
    names = [environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)]
    return bool(names) and names[0].lower().startswith("zh")
