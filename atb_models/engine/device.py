"""Which device a rank computes on."""

from __future__ import annotations

import os

import torch

from atb_models.errors import ConfigError


def choose_device(wanted: str | None) -> str:
    """The device type to use: `wanted`, else cuda where there is one, else cpu. Raises ConfigError if it is absent."""
    if wanted == "npu":
        raise ConfigError("device npu: this version has no Ascend backend yet; use --device cpu or --device cuda")
    if wanted == "cuda" or wanted is None:
        _share_visible_devices()
        if torch.cuda.is_available():
            return "cuda"
        if wanted == "cuda":
            raise ConfigError("device cuda: torch sees no CUDA device here; use --device cpu")
    return "cpu"


def rank_device(kind: str, local_rank: int) -> torch.device:
    """The device of the rank with this index on its host, made the current one."""
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(f"rank {local_rank} of this host has no device of its own: {count} CUDA devices are visible")
    torch.cuda.set_device(local_rank)
    # Sums are made in float32 whatever the dtype; torch lets cuBLAS reduce in half precision by default.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return torch.device("cuda", local_rank)


def _share_visible_devices() -> None:
    """Users of the launcher name their devices in ASCEND_RT_VISIBLE_DEVICES; on CUDA it means the same."""
    devices = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if devices and "CUDA_VISIBLE_DEVICES" not in os.environ and not torch.cuda.is_initialized():
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
