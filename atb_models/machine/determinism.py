"""The switch for the same bits in every run: what it takes on each type of device. CPUs need none.

On a CPU an operation adds in an order that its shapes and threads decide, and a collective in rank order.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from atb_models import env
from atb_models.errors import ConfigError

logger = logging.getLogger(__name__)

# What the libraries must find in the environment when they are loaded: the first value is set, each of them will do.
# HCCL and LCCL sum in one order, matrix products go through K in one, and none is overlapped with the sum of its parts.
# cuBLAS: the two sizes that torch demands.
NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "npu": {
        "HCCL_DETERMINISTIC": ("true", "strict"),
        "LCCL_DETERMINISTIC": ("1", "true"),
        "ATB_MATMUL_SHUFFLE_K_ENABLE": ("0",),
        "CLOSE_MATMUL_K_SHIFT": ("1",),
        "ATB_LLM_LCOC_ENABLE": ("0",),
    },
    "cuda": {"CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8")},
}
# As nnal's set_env.sh exports them in every shell that is set up: nobody's choice.
VENDOR = {"LCCL_DETERMINISTIC": "0", "ATB_MATMUL_SHUFFLE_K_ENABLE": "1"}


def check(kind: str) -> None:
    """Raises ConfigError for a variable whose value is the user's and contradicts the switch."""
    for name, right in NEEDED.get(kind, {}).items():
        value = env.get(name)
        if value and value not in (*right, VENDOR.get(name)):
            raise ConfigError(f"deterministic needs {name}={right[0]}, the environment has {value}; unset it")


def export(kind: str) -> None:
    """Set what the libraries of `kind` need, here and so in the ranks that this process starts.

    Raises as `check`, and where this process has used the device without: the libraries do not look again.
    """
    check(kind)
    used = kind in NEEDED and hasattr(torch, kind) and getattr(torch, kind).is_initialized()
    for name, right in NEEDED.get(kind, {}).items():
        value = env.get(name)
        if used and value not in right:
            raise ConfigError(
                f"deterministic needs {name}={right[0]} before the first use of {kind}, and this process has used it;"
                " start a new process"
            )
        if value and value not in right:
            logger.info("deterministic: %s is %s instead of %s, the default of nnal", name, right[0], value)
        if value not in right:
            os.environ[name] = right[0]


def switch_on(kind: str) -> None:
    """Tell torch, and by it the operators of `kind`, from now on and in the whole process.

    torch raises RuntimeError for an operation that cannot be had so. torch_npu's own setting of levels is not used: it
    warns against using this one beside it, and this one gives level 1.
    """
    if kind == "cpu":
        return
    torch.use_deterministic_algorithms(True)
    memory: Any = torch.utils.deterministic
    # Else each empty tensor is filled first, an operator more: nothing here reads what it has not written.
    memory.fill_uninitialized_memory = False
