"""The library's threads, in processes of their own: without OpenMP, after a fork, and more of them than cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.cases import LEVELS

WORK = Path(__file__).with_name("work.py")


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORK), LEVELS[-1], *arguments]
    environment = {**os.environ, "PYTHONPATH": str(WORK.parents[2])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> str:
    try:
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return out.strip()


def test_same_bits_with_and_without_openmp_and_in_a_forked_child(built: list[str]) -> None:
    """A fork leaves the child without the runtime's threads: it must compute with one, not wait for the others."""
    openmp, started, forked = start("1", "2", "5"), start("1", "2", "5", "--no-openmp"), start("2", "--fork")
    assert len({result(openmp), result(started), result(forked)}) == 1


@pytest.mark.full
def test_more_threads_than_cores(built: list[str]) -> None:
    """Eight ranks at once with two threads each, on however few cores there are."""
    ranks = [start(*["2"] * 20) for _ in range(8)]
    assert len({result(rank) for rank in ranks}) == 1
