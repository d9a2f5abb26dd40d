"""Tests of the Ascend backend. Those of `inside` run in processes of their own, which have a pretend device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
# Set by the soft NPU; without it the modules of `inside` have no device.
if "SOFT_NPU_DEVICES" not in os.environ:
    collect_ignore = ["inside"]


@pytest.fixture(scope="session")
def soft_npu() -> Run:
    """Runs this Python with pretend devices: `soft_npu("-c", "...", devices=2)`."""
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("torch_npu is not installed")
    from tests.npu.soft import environment

    def run(*words: str, devices: int = 1, limit_s: int = 900, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = os.environ | environment(devices) | variables
        return subprocess.run([sys.executable, *words], env=environ, capture_output=True, text=True, timeout=limit_s)

    return run
