"""The log of the command line programs: to stderr, in MindIE's line format, rank 0 only.

The library logs through `logging` under the name "atb_models" and configures nothing; programs call `setup`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from logging.handlers import RotatingFileHandler

from atb_models import env
from atb_models.errors import ConfigError

TIME = "[%(asctime)s.%(msecs)03d]"
VERBOSE = TIME + " [%(process)d] [%(thread)d] [llmmodels] [%(short)s] [%(filename)s-%(lineno)d] : %(message)s"
BRIEF = TIME + " [%(short)s] %(message)s"


def setup() -> None:
    """Configure the logger "atb_models" from the MINDIE_LOG_* variables; a second call replaces the first.

    Raises ConfigError for a bad variable or a log file that cannot be written.
    """
    logger = logging.getLogger("atb_models")
    logger.setLevel({"WARN": "WARNING"}.get(level := env.get("MINDIE_LOG_LEVEL"), level))
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if env.get("MINDIE_LOG_TO_STDOUT") else []
    if env.get("MINDIE_LOG_TO_FILE") and not _other_rank():
        handlers.append(_file_handler())
    for handler in handlers or [logging.NullHandler()]:
        handler.setFormatter(_Formatter(VERBOSE if env.get("MINDIE_LOG_VERBOSE") else BRIEF, "%Y-%m-%d %H:%M:%S"))
        handler.addFilter(_rank_zero_or_error)
        logger.addHandler(handler)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.short = "WARN" if record.levelno == logging.WARNING else record.levelname
        return super().format(record)


def _other_rank() -> bool:
    """Whether this is a rank other than 0. Not by env.get: that raises for a bad value, in every line of the log."""
    return os.environ.get("RANK", "0") != "0"


def _rank_zero_or_error(record: logging.LogRecord) -> bool:
    """Whether to write a record: all of rank 0, which the others would repeat, and errors of any rank."""
    return record.levelno >= logging.ERROR or not _other_rank()


def _file_handler() -> logging.Handler:
    megabytes, files = env.get("MINDIE_LOG_ROTATE")
    folder = env.get("MINDIE_LOG_PATH") / "debug"
    path = folder / f"mindie-llm_{os.getpid()}_{time.time_ns() // 1_000_000}.log"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=megabytes << 20, backupCount=max(1, files - 1), encoding="utf-8")
        path.chmod(0o640)
    except OSError as error:
        raise ConfigError(f"MINDIE_LOG_TO_FILE is on, but {path} cannot be written: {error.strerror}") from None
    return handler
