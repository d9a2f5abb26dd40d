"""The log: where it goes and what a line looks like."""

from __future__ import annotations

import logging
import re
import stat

import pytest

from atb_models import log
from atb_models.errors import ConfigError

pytestmark = pytest.mark.usefixtures("clean_environ")
logger = logging.getLogger("atb_models.test")


def test_console_is_stderr_with_mindies_prefix(capsys):
    log.setup()
    logger.warning("hello %d", 3)
    logger.debug("not logged")
    out, err = capsys.readouterr()
    assert not out
    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\] \[\d+\] \[\d+\] "
        r"\[llmmodels\] \[WARN\] \[test_log\.py-\d+\] : hello 3\n",
        err,
    )


def test_brief_lines_and_level(capsys, monkeypatch):
    monkeypatch.setenv("MINDIE_LOG_VERBOSE", "0")
    monkeypatch.setenv("MINDIE_LOG_LEVEL", "DEBUG")
    log.setup()
    log.setup()  # replaces, does not add
    logger.debug("hello")
    assert re.fullmatch(r"\[[\d :.-]+\] \[DEBUG\] hello\n", capsys.readouterr().err)


def test_other_ranks_only_log_errors(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    log.setup()
    logger.warning("repeated")
    logger.error("my own")
    assert capsys.readouterr().err.endswith(": my own\n")


def test_log_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MINDIE_LOG_TO_FILE", "true")
    monkeypatch.setenv("MINDIE_LOG_TO_STDOUT", "false")
    monkeypatch.setenv("MINDIE_LOG_PATH", str(tmp_path))
    log.setup()
    logger.info("hello")
    (path,) = (tmp_path / "debug").iterdir()
    assert re.fullmatch(r"mindie-llm_\d+_\d{13}\.log", path.name)
    assert path.read_text().endswith(": hello\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not capsys.readouterr().err


def test_log_file_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINDIE_LOG_TO_FILE", "1")
    monkeypatch.setenv("MINDIE_LOG_PATH", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="MINDIE_LOG_TO_FILE is on, but .* cannot be written"):
        log.setup()
