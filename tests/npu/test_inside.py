"""Runs the test modules of `inside`, each in a process with as many pretend devices as it needs.

One of them alone: python -m tests.npu.soft python -m pytest tests/npu/inside/test_parity.py -k bf16
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.npu.conftest import Run

INSIDE = Path(__file__).parent / "inside"


@pytest.mark.parametrize("module", sorted(path.name for path in INSIDE.glob("test_*.py")))
def test_module(soft_npu: Run, module: str) -> None:
    done = soft_npu("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(INSIDE / module), devices=8)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
def test_wide_crosses(soft_npu: Run) -> None:
    done = soft_npu("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "full", str(INSIDE), devices=8, limit_s=36000)
    assert done.returncode == 0, done.stdout + done.stderr
