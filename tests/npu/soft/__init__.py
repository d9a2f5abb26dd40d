"""A pretend Ascend device for machines without one: see README.md."""

from __future__ import annotations

import os
from pathlib import Path

from tests.npu.soft.stubs import stub_folder

OWN = Path(__file__).parent


def environment(devices: int = 1) -> dict[str, str]:
    """Variables for a process which, with its children, has `devices` pretend devices (0: a driver without any)."""
    return {
        "LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", stub_folder()),
        "PYTHONPATH": _before("PYTHONPATH", OWN / "site", OWN.parents[2]),
        "SOFT_NPU_DEVICES": str(devices),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "TASK_QUEUE_ENABLE": "0",  # an operator that fails then does so where it is called
    }


def _before(name: str, *folders: Path) -> str:
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get(name)])])
