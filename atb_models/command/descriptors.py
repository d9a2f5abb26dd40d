"""The limit of open files of this process."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one: every connection takes one, and 1024 is a common default.

    Child processes inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a hard limit beyond what the kernel allows one process
        logger.warning("the limit of open files stays %d, although it may be up to %d: %s", soft, hard, error)
