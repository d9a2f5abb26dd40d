"""Collectives between the ranks on the CPUs of one host, through shared memory that has no name (see segment.py)."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from atb_models.errors import ConfigError, RankError
from atb_models.ranks.barrier import LONG_PAUSE_S, SHORT_PAUSE_S, Barrier
from atb_models.ranks.health import Health
from atb_models.ranks.ordered_sum import quiet_sum

# Bytes that a rank can show the others at a time; larger tensors are moved in pieces.
SLOT = 512 << 10
# Up to this size every rank sums the whole tensor after one barrier. Beyond it each sums a share: two barriers.
SMALL = 16 << 10  # elements
# Offsets of the pids, the barrier counts (uint32), the barrier's words and the data. The segment's token comes first.
_PIDS, _CAME, _BARRIER, _HEADER = 64, 1568, 3072, 4096
_MAX_RANKS = (_CAME - _PIDS) // 4
_CLOSED = -1
_KEPT_PLANS = 256

_Key = TypeVar("_Key")
_P = TypeVar("_P")


class _SumPlan(NamedTuple):
    """Views for all-reduces of one shape. Pairs hold one view for each half of the slots."""

    mine: tuple[Tensor, Tensor]  # this rank's slot
    rows: list[list[np.ndarray]]  # for each half: what this rank sums, a part of each rank's slot
    total: np.ndarray  # where this rank writes its sum
    result: Tensor  # where the whole sum is


class _GatherPlan(NamedTuple):
    """Views for all-gathers of one shape [outer, width], one for each half of the slots."""

    mine: list[Tensor]
    shown: list[Tensor]  # [outer, ranks, width]


class SharedMemory:
    """The transport of ranks that share a host. Every rank makes the same calls in the same order.

    Layout: header | 2 halves x ranks x SLOT | SLOT for shares of a large sum. In an operation each rank writes its own
    slot of one half, waits at the barrier and reads the slots of the others. The next operation uses the other half, so
    no rank overwrites what a slower one still reads: the slower rank has not yet arrived at the next barrier. Sums are
    made in rank order in float32 (int64 for int64) for every size, so all ranks get the same bits.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int, health: Health, *, spins: int) -> None:
        self.rank, self.size, self._health = rank, size, health
        self._pids = memoryview(memory)[_PIDS : _PIDS + 4 * size].cast("I")
        self._pids[rank] = os.getpid()
        self._came = memoryview(memory)[_CAME : _CAME + 4 * size].cast("I")
        # Rank 0 must notice Ctrl-C and a failure that its other thread has seen; the others may wait for days.
        patience = SHORT_PAUSE_S if rank == 0 else LONG_PAUSE_S
        self._barrier = Barrier(memory, _BARRIER, size, spins=spins, patience=patience)
        self._half, self._sum = 0, quiet_sum()
        self._looked = time.monotonic()
        self._sum_plans: dict[tuple[torch.Size, bool], _SumPlan] = {}
        self._share_plans: dict[tuple[int, bool], _SumPlan] = {}
        self._gather_plans: dict[tuple[torch.Size, torch.dtype], _GatherPlan] = {}
        with torch.inference_mode(False):
            data = torch.frombuffer(memory, dtype=torch.uint8, offset=_HEADER)
            self._slots = data[: 2 * size * SLOT].view(2, size, SLOT)
            self._shares = data[2 * size * SLOT :]
        health.interrupts.append(self._barrier.interrupt)

    @staticmethod
    def bytes_needed(size: int) -> int:
        if size > _MAX_RANKS:
            raise ConfigError(f"{size} ranks on one host are more than {_MAX_RANKS}")
        return _HEADER + (2 * size + 1) * SLOT

    def meet(self, timeout: float) -> None:
        """The first barrier. Raises RankError naming the ranks that did not arrive within `timeout` seconds."""
        deadline = time.monotonic() + timeout

        def idle() -> None:
            self._idle()
            if time.monotonic() > deadline:
                absent = ", ".join(str(rank) for rank, pid in enumerate(self._pids) if pid == 0)
                raise RankError(f"ranks missing after {timeout:g} s: {absent or 'none, but not all have arrived'}")

        self._exchange(idle)

    def pids(self) -> dict[int, int]:
        """rank -> pid, complete after the first barrier."""
        return dict(enumerate(self._pids))

    def barrier(self, name: str, timeout: float) -> None:
        """Raises RankError naming the ranks that have not finished `name` within `timeout` seconds after this one."""
        deadline = time.monotonic() + timeout
        self._came[self.rank] += 1

        def idle() -> None:
            self._idle()
            if time.monotonic() > deadline:
                absent = [str(rank) for rank, count in enumerate(self._came) if count < self._came[self.rank]]
                raise RankError(
                    f"rank {', '.join(absent) or 'unknown'} has not finished {name} {timeout:g} s after"
                    f" rank {self.rank}"
                )

        self._exchange(idle)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks into x (fp32, fp16, bf16 or int64), which is returned."""
        if x.numel() > SMALL:
            return self._all_reduce_large(x)
        key = (x.shape, x.dtype is torch.int64)
        plan = self._sum_plans.get(key) or self._plan_small_sum(*key)
        half = self._half
        plan.mine[half].copy_(x)
        self._exchange()
        self._sum(plan.rows[half], plan.total)
        return x.copy_(plan.result)

    def _all_reduce_large(self, x: Tensor) -> Tensor:
        integer = x.dtype is torch.int64
        flat = x.reshape(-1)
        for piece in flat.split(SLOT // (8 if integer else 4)):
            plan = self._share_plans.get((piece.numel(), integer)) or self._plan_shares(piece.numel(), integer)
            half = self._half
            plan.mine[half].copy_(piece)
            self._exchange()
            self._sum(plan.rows[half], plan.total)
            # One area of shares is enough: it is written again only after the next piece's first barrier, and a rank
            # arrives there only after it has read this one.
            self._exchange()
            piece.copy_(plan.result)
        return x if x.is_contiguous() else x.copy_(flat.view(x.shape))

    def _plan_small_sum(self, shape: torch.Size, integer: bool) -> _SumPlan:
        wide, numel = _wide(integer), shape.numel()
        with torch.inference_mode(False):  # views made in inference mode cannot be used outside it
            slots = self._slots.view(wide)[:, :, :numel]
            total = torch.empty(numel, dtype=wide)
            mine = slots[0, self.rank].view(shape), slots[1, self.rank].view(shape)
            plan = _SumPlan(mine, [list(half.numpy()) for half in slots], total.numpy(), total.view(shape))
        return _keep(self._sum_plans, (shape, integer), plan)

    def _plan_shares(self, count: int, integer: bool) -> _SumPlan:
        """Each rank sums one share of the `count` elements for all ranks."""
        wide, share = _wide(integer), -(-count // self.size)
        first, last = min(self.rank * share, count), min((self.rank + 1) * share, count)
        with torch.inference_mode(False):
            slots, shares = self._slots.view(wide), self._shares.view(wide)
            mine = slots[0, self.rank, :count], slots[1, self.rank, :count]
            rows = [list(half[:, first:last].numpy()) for half in slots]
            plan = _SumPlan(mine, rows, shares[first:last].numpy(), shares[:count])
        return _keep(self._share_plans, (count, integer), plan)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """The ranks' tensors, all of one shape, concatenated on `dim` in rank order."""
        dim %= x.dim()
        flat = x.reshape(x.shape[:dim].numel(), x.shape[dim:].numel())  # [outer, width]
        gathered = x.new_empty((flat.shape[0], self.size, flat.shape[1]))
        for rows, columns in _bands(flat.shape[0], flat.shape[1], SLOT // x.element_size()):
            piece = flat[rows, columns]
            key = (piece.shape, x.dtype)
            plan = self._gather_plans.get(key) or self._plan_gather(*key)
            half = self._half
            plan.mine[half].copy_(piece)
            self._exchange()
            gathered[rows, :, columns].copy_(plan.shown[half])
        return gathered.view(*x.shape[:dim], self.size * x.shape[dim], *x.shape[dim + 1 :])

    def _plan_gather(self, shape: torch.Size, dtype: torch.dtype) -> _GatherPlan:
        with torch.inference_mode(False):
            slots = self._slots.view(dtype)[:, :, : shape.numel()].view(2, self.size, *shape)
            plan = _GatherPlan(list(slots[:, self.rank].unbind()), list(slots.transpose(1, 2).unbind()))
        return _keep(self._gather_plans, (shape, dtype), plan)

    def send(self, message: np.ndarray | None) -> None:
        """On rank 0: send an int32 array to all others. None: their `receive` returns None."""
        length = _CLOSED if message is None else message.size
        body = np.empty(0, np.int32) if message is None else message
        first = True
        for part in _message_parts(length):
            slot = self._slots[self._half, 0].numpy().view(np.int32)
            if first:
                slot[0], slot = length, slot[1:]
            slot[: part.stop - part.start] = body[part]
            self._exchange()
            first = False

    def receive(self) -> np.ndarray | None:
        """On the other ranks: what rank 0 sends next. Waits without a time limit or CPU use."""
        slot = self._next_slot()
        length = int(slot[0])
        if length == _CLOSED:
            return None
        message = np.empty(length, np.int32)
        for i, part in enumerate(_message_parts(length)):
            slot = slot[1:] if i == 0 else self._next_slot()
            message[part] = slot[: part.stop - part.start]
        return message

    def _next_slot(self) -> np.ndarray:
        half = self._half
        self._exchange()
        return self._slots[half, 0].numpy().view(np.int32)

    def _exchange(self, idle: Callable[[], None] | None = None) -> None:
        """Afterwards all ranks can read this half's slots; the next writes go to the other half."""
        self._half ^= 1
        try:
            self._barrier.wait(idle or self._idle)
        except BaseException as error:
            self._health.fail(f"waiting for the other ranks was interrupted by {type(error).__name__}: {error}")
            raise

    def _idle(self) -> None:
        self._health.check()
        if (now := time.monotonic()) - self._looked > LONG_PAUSE_S:
            self._looked = now
            self._health.look()


def _wide(integer: bool) -> torch.dtype:
    return torch.int64 if integer else torch.float32


def _keep(plans: dict[_Key, _P], key: _Key, plan: _P) -> _P:
    if len(plans) >= _KEPT_PLANS:
        plans.clear()
    plans[key] = plan
    return plan


def _bands(rows: int, width: int, capacity: int) -> Iterator[tuple[slice, slice]]:
    """Cut [rows, width] into pieces of at most `capacity` elements: bands of rows, or parts of a row that is larger."""
    height, step = max(1, capacity // max(1, width)), min(width, capacity)
    for top in range(0, rows, height):
        for left in range(0, width, max(1, step)):
            yield slice(top, min(top + height, rows)), slice(left, min(left + step, width))


def _message_parts(length: int) -> Iterator[slice]:
    """A message in parts that fit a slot; the first slot also holds the length."""
    capacity = SLOT // 4
    stop = min(max(length, 0), capacity - 1)
    yield slice(0, stop)
    while stop < length:
        start, stop = stop, min(stop + capacity, length)
        yield slice(start, stop)
