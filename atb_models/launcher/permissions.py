"""MINDIE_CHECK_INPUTFILES_PERMISSION: a warning about checkpoint files that somebody else could have changed."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from atb_models import env

logger = logging.getLogger(__name__)


def warn_of_permissions(folder: Path) -> None:
    """Name the files (links followed) that others can write or that belong to neither this user nor root."""
    if not env.get("MINDIE_CHECK_INPUTFILES_PERMISSION"):
        return
    suspect = [path.name for path in sorted(folder.iterdir()) if path.is_file() and _is_suspect(path.stat())]
    if suspect:
        logger.warning(
            "%s: others can change %s; `chmod go-w` them, or silence this with MINDIE_CHECK_INPUTFILES_PERMISSION=0",
            folder, ", ".join(suspect),
        )  # fmt: skip


def _is_suspect(status: os.stat_result) -> bool:
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) or status.st_uid not in (os.geteuid(), 0)
