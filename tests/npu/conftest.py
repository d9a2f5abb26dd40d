"""Tests of the Ascend backend. Those of `inside` run in processes of their own, which have a pretend device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
# Operations that torch_npu itself must serve.
NATIVE = (
    *("RmsNorm", "AddRmsNorm", "Rope", "ReshapeAndCache", "PagedAttention", "SwiGlu"),
    *("Router", "MoeGating", "MoeInitRouting", "GroupedMatmul", "MoeFinalizeRouting"),
)
# Set by the soft NPU; without it the modules of `inside` have no device.
if "SOFT_NPU_DEVICES" not in os.environ:
    collect_ignore = ["inside"]


@pytest.fixture(scope="session")
def soft_npu() -> Run:
    """Runs this Python, or another program, with pretend devices: `soft_npu("-c", "...", devices=2)`."""
    if importlib.util.find_spec("torch_npu") is None:
        pytest.skip("torch_npu is not installed")
    from tests.npu.soft import environment

    def run(
        *words: str, program: str = sys.executable, devices: int = 1, limit_s: int = 900, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environ = os.environ | environment(devices) | variables
        return subprocess.run([program, *words], env=environ, capture_output=True, text=True, timeout=limit_s)

    return run
