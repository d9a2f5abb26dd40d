"""The switch for the same bits in every run: what each type of device needs for it. CPUs need nothing.

On a CPU the shapes and the number of threads fix the order in which an operation adds; a collective adds in rank order.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from atb_models import env
from atb_models.errors import ConfigError

logger = logging.getLogger(__name__)

# What the libraries must find in the environment when they are loaded. Any of the values is accepted; the first is set.
# NPU: HCCL, LCCL and matrix products (along K) add in a fixed order, and products do not overlap with collectives.
# cuBLAS: the two workspace sizes that torch requires.
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
# What nnal's set_env.sh exports in every shell: not the user's choice.
VENDOR = {"LCCL_DETERMINISTIC": "0", "ATB_MATMUL_SHUFFLE_K_ENABLE": "1"}


def check(kind: str) -> None:
    """Raises ConfigError for a variable that the user has set to a value which contradicts the switch."""
    for name, right in NEEDED.get(kind, {}).items():
        value = env.get(name)
        if value and value not in (*right, VENDOR.get(name)):
            raise ConfigError(f"deterministic needs {name}={right[0]}, the environment has {value}; unset it")


def export(kind: str) -> None:
    """Set what the libraries of `kind` need, for this process and the ranks that it starts.

    Raises ConfigError as `check` does, and if this process has already used the device: the libraries read once.
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
    """Switch torch, and with it the operators of `kind`, to determinism, for the rest of the process.

    torch raises RuntimeError for an operation that has no deterministic form. torch_npu's setting of levels is not
    used: it must not be combined with this one, which gives level 1.
    """
    if kind == "cpu":
        return
    torch.use_deterministic_algorithms(True)
    memory: Any = torch.utils.deterministic
    # Otherwise torch fills each empty tensor, with one more operator. Nothing here reads memory before writing it.
    memory.fill_uninitialized_memory = False
