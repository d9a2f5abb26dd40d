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

# The one place that says which library moves a device's tensors.
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
FOREVER = timedelta(days=3650)  # an idle server waits for its next step as long as it takes
_BLOCK = 4096  # int32 words of the first message block, which carries a decode step whole
_CLOSED = -1


def open_world(store: dist.Store, rank: int, size: int, device: str) -> None:
    """Make torch.distributed's default group of these ranks; `close_world` undoes it.

    Raises ConfigError where the process has such a group already: there can be only one.
    """
    if dist.is_initialized():
        raise ConfigError(
            "torch.distributed is initialised in this process already; call its destroy_process_group() first"
        )
    dist.init_process_group(BACKENDS[device], store=store, rank=rank, world_size=size, timeout=FOREVER)


def abort_world() -> None:
    """From another thread, free one that waits for peers that are gone. gloo notices that by itself."""
    abort = getattr(dist.group.WORLD, "abort", None)
    if abort is not None and dist.get_backend() != "gloo":
        with contextlib.suppress(RuntimeError):  # it is on its way out anyway
            abort()


def close_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Group:
    def __init__(self, group: dist.ProcessGroup | None, health: Health) -> None:
        self._group, self._health, self._sum = group, health, quiet_sum()
        self.size = dist.get_world_size(group)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """The ranks' equally shaped tensors, concatenated on `dim` in rank order."""
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
            self._health.wait_for_failure(1.0)  # whoever watches the ranks knows which one it was
            during = self._health.during()
            self._health.fail(
                f"{collective.__name__} failed {during}, a rank or its host is gone or stands still: {error}"
            )
            self._health.check()


class DeviceGroup(_Group):
    """Tensors on a device, moved and summed by its library."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks into x, which is returned."""
        self._call(dist.all_reduce, x)
        return x


class HostGroup(_Group):
    """The transport of ranks on several hosts: everything on CPUs, messages also for ranks that compute on devices."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks into x, which is returned: in rank order in float32, the same bits as in shared memory.

        Each rank gets its share of everybody's tensor, sums it and gives it to all, the traffic of gloo's own.
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
        """The error of one that takes longer than `timeout` seconds has the ranks' numbers, and `name` by `during`."""
        self._call(dist.monitored_barrier, timeout=timedelta(seconds=timeout), wait_all_ranks=True)

    def send(self, message: np.ndarray | None) -> None:
        """Rank 0: an int32 array to all others; None ends their `receive` with None."""
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
        """The other ranks: what rank 0 sends next; waits without limit and without using the CPU."""
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
