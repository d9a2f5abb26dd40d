"""The limit of open files of a program that has many connections."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from atb_models.command.descriptors import raise_descriptor_limit

PROGRAM = """
import resource
from atb_models.command.descriptors import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
raise_descriptor_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""


def test_the_soft_limit_becomes_the_hard_one(root: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n" and ran.stderr == ""


def test_where_that_cannot_be_it_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    caplog.set_level(logging.WARNING)
    raise_descriptor_limit()
    assert "stays 64, although it may be up to 4096: not allowed" in caplog.text
