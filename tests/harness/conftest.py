"""Fixtures of modeltest's own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeltest.command import grammar

Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def modeltest(root: Path, tmp_path: Path, clean_environ: None) -> Callable[..., Ended]:
    """Run `bash tests/modeltest/run.sh words` in an empty folder; its exit status must be `status`."""

    def run(*words: object, status: int = 0, timeout: float = 120, **environ: str) -> Ended:
        command = ["bash", str(root / "tests" / "modeltest" / "run.sh"), *map(str, words)]
        variables = {**os.environ, "PYTHON": sys.executable, "LC_ALL": "C.UTF-8", **environ}
        ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=timeout)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return ended

    return run


@pytest.fixture
def parse(demo: Path) -> Any:
    """The run of some words, in which W stands for the weights' folder."""
    return lambda *words: grammar.parse([str(demo) if word == "W" else word for word in words])
