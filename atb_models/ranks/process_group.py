"""Collectives through torch.distributed: a device's own library, and gloo between several hosts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from atb_models.errors import ConfigError
from atb_models.ranks.health import Health
from atb_models.ranks.ordered_sum import quiet_sum

# Which library moves the tensors of a device; said nowhere else.
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
FOREVER = timedelta(days=3650)  # no limit: an idle server waits for its next step
_BLOCK = 4096  # int32 words of a message's first block; a whole decode step fits into it
_CLOSED = -1


def open_world(store: dist.Store, rank: int, size: int, device: str) -> None:
    """Make these ranks torch.distributed's default group, until `close_world`.

    Raises ConfigError if the process already has a default group: there can be only one.
    """
    if dist.is_initialized():
        raise ConfigError(
            "torch.distributed is initialised in this process already; call its destroy_process_group() first"
        )
    dist.init_process_group(BACKENDS[device], store=store, rank=rank, world_size=size, timeout=FOREVER)


def abort_world() -> None:
    """Called from another thread: stop a wait for ranks that have ended. gloo notices their end by itself."""
    abort = getattr(dist.group.WORLD, "abort", None)
    if abort is not None and dist.get_backend() != "gloo":
        with contextlib.suppress(RuntimeError):  # the group is being closed already
            abort()


def close_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Group:
    def __init__(self, group: dist.ProcessGroup | None, health: Health) -> None:
        self._group, self._health, self._sum = group, health, quiet_sum()
        self.size = dist.get_world_size(group)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """The ranks' tensors, all of one shape, concatenated on `dim` in rank order."""
        dim %= x.dim()
        gathered = x.new_empty((self.size, *x.shape))
        self._gather(gathered, x.contiguous())
        return gathered.movedim(0, dim).reshape(*x.shape[:dim], self.size * x.shape[dim], *x.shape[dim + 1 :])

    def _gather(self, gathered: Tensor, x: Tensor) -> None:
        self._call(dist.all_gather, list(gathered.unbind()), x)

    def _call(self, collective: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            collective(*args, group=self._group, **options)
        except RuntimeError as error:
            self._health.wait_for_failure(1.0)  # the thread that watches the ranks knows which one it was
            during = self._health.during()
            self._health.fail(
                f"{collective.__name__} failed {during}, a rank or its host has ended or does not respond: {error}"
            )
            self._health.check()


class DeviceGroup(_Group):
    """Collectives on tensors of a device, by the device's own library."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks into x, which is returned."""
        self._call(dist.all_reduce, x)
        return x


class HostGroup(_Group):
    """The transport of ranks on several hosts: CPU tensors, and messages for ranks on any device."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks into x, which is returned: in rank order in float32, the same bits as in shared memory.

        Each rank receives one share of every rank's tensor, sums it and sends it to all: as many bytes as gloo's own.
        """
        share = -(-x.numel() // self.size)
        padded = x.new_zeros((self.size, share))
        padded.view(-1)[: x.numel()] = x.reshape(-1)
        shares = torch.empty_like(padded)
        self._call(dist.all_to_all_single, shares.view(torch.uint8), padded.view(torch.uint8))
        wide = shares.to(torch.int64 if x.dtype is torch.int64 else torch.float32)
        self._sum(list(wide.numpy()), wide[0].numpy())
        self._gather(padded, wide[0].to(x.dtype))
        return x.copy_(padded.view(-1)[: x.numel()].view(x.shape))

    def _gather(self, gathered: Tensor, x: Tensor) -> None:
        rows = gathered.view(self.size, -1).view(torch.uint8)  # gloo does not know every dtype
        self._call(dist.all_gather, list(rows.unbind()), x.reshape(-1).view(torch.uint8))

    def barrier(self, name: str, timeout: float) -> None:
        """Raises RankError with the numbers of late ranks after `timeout` seconds; the group's activity says `name`."""
        self._call(dist.monitored_barrier, timeout=timedelta(seconds=timeout), wait_all_ranks=True)

    def send(self, message: np.ndarray | None) -> None:
        """On rank 0: send an int32 array to all others. None: their `receive` returns None."""
        block = torch.zeros(_BLOCK, dtype=torch.int32)
        if message is None:
            block[0] = _CLOSED
        else:
            block[0], words = message.size, torch.from_numpy(message)
            block[1 : 1 + message.size] = words[: _BLOCK - 1]
        self._call(dist.broadcast, block, 0)
        if message is not None and message.size > _BLOCK - 1:
            self._call(dist.broadcast, words[_BLOCK - 1 :].clone(), 0)

    def receive(self) -> np.ndarray | None:
        """On the other ranks: what rank 0 sends next. Waits without a time limit or CPU use."""
        block = torch.empty(_BLOCK, dtype=torch.int32)
        self._call(dist.broadcast, block, 0)
        length = int(block[0])
        if length == _CLOSED:
            return None
        message = torch.empty(length, dtype=torch.int32)
        message[: _BLOCK - 1] = block[1 : 1 + length]
        if length > _BLOCK - 1:
            self._call(dist.broadcast, rest := torch.empty(length - _BLOCK + 1, dtype=torch.int32), 0)
            message[_BLOCK - 1 :] = rest
        return message.numpy()
