"""Connections that cannot be accepted because the process or the machine has no descriptor left."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from time import monotonic
from typing import Any

logger = logging.getLogger(__name__)

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
LOG_EVERY_S = 60.0


class AcceptErrors:
    """An exception handler for an event loop: one line a minute for failed accepts, anything else as usual.

    asyncio reports each attempt, thousands a second, and tries again by itself once a second.
    """

    def __init__(self) -> None:
        self._logged_s: float | None = None
        self._untold = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in EXHAUSTED or "socket" not in context:
            loop.default_exception_handler(context)
            return
        self._untold += 1
        if self._logged_s is None or monotonic() - self._logged_s >= LOG_EVERY_S:
            logger.error(
                "new connections wait, because none can be accepted: %s (%d attempts); open files are limited to %d"
                " (ulimit -n); this is logged once a minute",
                error.strerror, self._untold, resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )  # fmt: skip
            self._logged_s, self._untold = monotonic(), 0
