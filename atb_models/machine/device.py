"""Which device a rank computes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from atb_models import env
from atb_models.errors import ConfigError
from atb_models.machine import determinism, npu
from atb_models.wording import message_lines


def choose_device(wanted: str | None, *, deterministic: bool = False) -> str:
    """The device type to use: `wanted`, else the first present of npu, cuda and cpu. Raises ConfigError if absent.

    The launcher's users name their devices in ASCEND_RT_VISIBLE_DEVICES; after this call it counts for CUDA too.
    deterministic: see `determinism.export`, which comes before the device's libraries are loaded.
    """
    if wanted in ("cuda", None):
        _share_visible_devices()
    kind = present_device(wanted, deterministic=deterministic)
    if deterministic and kind == "cuda":
        determinism.export(kind)
    return kind


def present_device(wanted: str | None, *, deterministic: bool = False) -> str:
    """As `choose_device`, without applying the user's list of devices."""
    if wanted in ("npu", None) and npu.usable(wanted=wanted == "npu", deterministic=deterministic):
        return "npu"
    if wanted == "cuda" or wanted is None:
        if torch.cuda.is_available():
            return "cuda"
        if wanted == "cuda":
            raise ConfigError("device cuda: torch sees no CUDA device here; use --device cpu")
    return "cpu"


def rank_device(kind: str, local_rank: int) -> torch.device:
    """The device of the rank with this index on its host, which becomes the current one before any other use."""
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "npu":
        npu.load()
    count = device_module(kind).device_count()
    if local_rank >= count:
        raise ConfigError(
            f"rank {local_rank} of this host has no device of its own: {count} {kind.upper()} devices are visible"
        )
    try:
        device_module(kind).set_device(local_rank)
    except RuntimeError as error:  # this is the first call that reaches the driver
        raise ConfigError(f"device {kind}: cannot use number {local_rank}: {message_lines(error)[0]}") from None
    _sum_in_float32(kind)
    return torch.device(kind, local_rank)


def check_device_for_each(kind: str, ranks: int) -> None:
    """Called before ranks are started. Raises ConfigError if there are fewer devices than ranks."""
    count = ranks if kind == "cpu" else int(device_module(kind).device_count())
    if count < ranks:
        raise ConfigError(f"tp {ranks} needs {ranks} devices, {count} {kind.upper()} devices are visible; lower it")


def device_module(kind: str) -> Any:
    """torch.cuda, or torch.npu, which has the same functions once torch_npu is imported."""
    return getattr(torch, kind)


def _sum_in_float32(kind: str) -> None:
    """For every dtype. By default the libraries may not: cuBLAS does not."""
    if kind == "npu":
        device_module(kind).matmul.allow_hf32 = False
        return
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _share_visible_devices() -> None:
    """Called before CUDA is initialized, which reads its variable once. Raises ConfigError for absent devices."""
    listed = env.get("ASCEND_RT_VISIBLE_DEVICES")
    # Not by env.is_set: an empty CUDA_VISIBLE_DEVICES is a choice too, of no device.
    if not listed or "CUDA_VISIBLE_DEVICES" in os.environ or torch.cuda.is_initialized():
        return
    existing = torch.cuda.device_count()
    if existing:
        check_listed(listed, existing)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, listed))


def check_listed(listed: Sequence[int], existing: int) -> None:
    """Raises ConfigError, with both numbers, if the user's list names more than the `existing` devices."""
    if len(listed) > existing or max(listed) >= existing:
        raise ConfigError(
            f"ASCEND_RT_VISIBLE_DEVICES={','.join(map(str, listed))} names {len(listed)} devices up to number"
            f" {max(listed)}, {existing} exist, numbered from 0; name only those"
        )
