"""The group of ranks that hold one model: its collectives, the step messages from rank 0, and how it is formed."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from atb_models import env
from atb_models.errors import ConfigError, RankError
from atb_models.machine.cores import available_cores, claim_threads
from atb_models.machine.device import rank_device
from atb_models.ranks.health import Health
from atb_models.ranks.lifetime import die_with_parent
from atb_models.ranks.segment import Segment, open_segment
from atb_models.ranks.shared_memory import SharedMemory

if TYPE_CHECKING:
    import torch.distributed as dist

MEET_TIMEOUT_S = 600.0
# Ranks read the same files at about the same time: one that is this much later than another will not arrive.
BARRIER_TIMEOUT_S = 1800.0
CLOSE_TIMEOUT_S = 3.0
# With a core for each rank, a rank looks this often for the others before it sleeps (about 0.1 ms).
SPINS = 100
_MEMORY_KEY = "atb_models/memory"
_HERE_KEY = "atb_models/here"
_T = TypeVar("_T")


@dataclass(frozen=True)
class RankPlacement:
    """A rank's number among all ranks and among those of its host, and its device type."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: str

    @classmethod
    def from_environment(cls, device: str) -> RankPlacement:
        """As torchrun's variables say; a process without them is the only rank. Raises ConfigError for a bad value."""
        rank, size = env.get("RANK") or 0, env.get("WORLD_SIZE") or 1
        absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not env.is_set(name)]
        if rank >= size or (size > 1 and absent):
            what = f"without {', '.join(absent)}" if size > 1 and absent else f"with RANK {rank}"
            raise ConfigError(f"WORLD_SIZE {size} {what}; unset them, or start the ranks with torchrun")
        return cls(rank, size, env.get("LOCAL_RANK") or 0, env.get("LOCAL_WORLD_SIZE") or size, device)


class Collectives(Protocol):
    """Moves tensors between ranks."""

    def all_reduce(self, x: Tensor) -> Tensor: ...

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor: ...


class Transport(Collectives, Protocol):
    """Moves messages as well; its tensors are on the CPU."""

    def barrier(self, name: str, timeout: float) -> None: ...

    def send(self, message: np.ndarray | None) -> None: ...

    def receive(self) -> np.ndarray | None: ...


class RankGroup:
    """One rank's view of the group. Every rank makes the same collective calls in the same order.

    rank, size: this rank and the number of ranks. ranks_here: ranks on this host; local: that is all of them.
    device: where this rank computes. Every wait for another rank raises RankError when one has died.
    While it is open torch computes with this rank's share of the cores, see machine/cores.py.
    """

    def __init__(
        self,
        place: RankPlacement,
        device: torch.device,
        host: Transport | None = None,
        tensors: Collectives | None = None,
        health: Health | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """host: moves messages and CPU tensors; None for a single rank. tensors: moves the device's; None: `host`."""
        self.rank, self.size, self.ranks_here = place.rank, place.size, place.local_size
        self.local = place.local_size == place.size
        self.device = device
        self.health = health or Health()
        self._host, self._tensors = host, tensors or host
        closing = (on_close, claim_threads(place.local_size))
        self._end = weakref.finalize(self, _end, os.getpid(), host if self.rank == 0 else None, self.health, closing)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place, with the same bits on every rank. On CPUs in rank order, in float32."""
        return x if self.size == 1 else _open(self._tensors).all_reduce(x)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """The ranks' tensors, all of one shape, concatenated on `dim` in rank order."""
        return x if self.size == 1 else _open(self._tensors).all_gather(x, dim)

    def minimum(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return value if self.size == 1 else int(_open(self._host).all_gather(torch.tensor([value])).min())

    def numbers_of_all(self, values: Tensor) -> Tensor:
        """The ranks' integers, as many on each -> [ranks, as many], on the CPU."""
        gathered = values if self.size == 1 else _open(self._host).all_gather(values)
        return gathered.view(self.size, -1)

    def barrier(self, name: str) -> None:
        """Wait until all ranks have finished `name`, such as "loading". Raises RankError if one takes too long."""
        if self.size > 1:
            with self.doing(f"waiting for all ranks to finish {name}"):
                _open(self._host).barrier(name, BARRIER_TIMEOUT_S)

    def send_step(self, message: np.ndarray) -> None:
        """On rank 0: send one step, a one-dimensional int32 array of any length, to all other ranks."""
        assert self.rank == 0 and message.dtype == np.int32 and message.ndim == 1
        if self.size > 1:
            _open(self._host).send(message)

    def receive_step(self) -> np.ndarray | None:
        """On the other ranks: the next step, or None once rank 0 has closed. Waits without a time limit or CPU use."""
        assert self.rank > 0, "rank 0 sends the steps"
        return _open(self._host).receive()

    def doing(self, activity: str) -> AbstractContextManager[None]:
        """A section in which all ranks act together, such as `with group.doing("loading weights"):`.

        Its name appears in the error when a rank dies. An exception that leaves the section fails the group, because
        the ranks are then out of step; a single rank cannot be. If a rank dies while rank 0 of a spawned group is in
        such a section and cannot be interrupted within 3 s, rank 0's process ends.
        """
        return self.health.doing(activity) if self.size > 1 else contextlib.nullcontext()

    def check(self) -> None:
        """Raise RankError if a rank has died. For long operations of one rank, such as loading."""
        self.health.check()

    def close(self) -> None:
        """On rank 0: let the other ranks end and wait for those it started. May be repeated, also after a failure.

        A group that is garbage collected, or still open when the process exits, is closed then.
        """
        self._host = self._tensors = None
        self._end()

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def group_from_environment(device: str) -> RankGroup:
    """The group that torchrun's variables describe; a single rank if they are not set.

    Raises ConfigError for bad values, RankError if the ranks do not find each other within 10 minutes.
    """
    place = RankPlacement.from_environment(device)
    if place.size == 1:
        return RankGroup(place, rank_device(place.device, 0))
    die_with_parent()
    import torch.distributed as dist

    address = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEET_TIMEOUT_S)))
    except (RuntimeError, ValueError) as error:
        message = f"rank {place.rank} cannot meet the others at MASTER_ADDR:MASTER_PORT {address}: {error}"
        raise RankError(message) from None
    return join(place, store, Health())


def join(place: RankPlacement, store: dist.Store, health: Health) -> RankGroup:
    """Connect to the other ranks through a store; in shared memory if all are on one host."""
    memory = None
    if place.local_size == place.size:
        memory = _share_memory(place, store, health)
        # torchrun ends all ranks when one dies. For ranks that something else started, rank 0 watches the others and
        # they watch rank 0.
        pids = memory.pids()
        del pids[place.rank]
        health.watch(pids if place.rank == 0 else {0: pids[0]})
    return connect(place, memory, store, health)


def connect(
    place: RankPlacement,
    memory: SharedMemory | None,
    store: dist.Store | None,
    health: Health,
    on_close: Callable[[], None] = lambda: None,
) -> RankGroup:
    """The group on the transports that this placement needs. Devices and several hosts need the store."""
    device = rank_device(place.device, place.local_rank)
    if memory is not None and place.device == "cpu":
        return RankGroup(place, device, memory, memory, health, on_close)
    import torch.distributed as dist

    from atb_models.ranks import process_group

    assert store is not None, "a process group needs a store to meet in"
    if memory is None:
        _meet_in_store(place, store)
    process_group.open_world(dist.PrefixStore("atb_models", store), place.rank, place.size, place.device)
    health.interrupts.append(process_group.abort_world)

    def close() -> None:
        process_group.close_world()
        on_close()

    tensors = process_group.DeviceGroup(None, health) if place.device != "cpu" else None
    host: Transport
    if memory is not None:
        host = memory
    else:
        group = dist.new_group(backend="gloo", timeout=process_group.FOREVER) if tensors else None
        host = process_group.HostGroup(group, health)
    return RankGroup(place, device, host, tensors, health, close)


def spins(ranks_here: int) -> int:
    """How often to look for the others before sleeping; 0 with more ranks than cores, as they need this core."""
    return SPINS if ranks_here <= available_cores() else 0


def _end(owner: int, host: Transport | None, health: Health, closing: Iterable[Callable[[], None]]) -> None:
    """Rank 0 (the only one with a `host` here) tells the others to end, within CLOSE_TIMEOUT_S; then `closing`."""
    if os.getpid() != owner:
        return  # a process forked from the rank has only copies of its objects
    health.expect_end(CLOSE_TIMEOUT_S)
    try:
        if host is not None and health.failure is None:
            with contextlib.suppress(RankError):
                host.send(None)
    finally:
        for close in closing:
            close()


def _open(transport: _T | None) -> _T:
    if transport is None:
        raise RankError("the group of ranks is closed")
    return transport


def _share_memory(place: RankPlacement, store: dist.Store, health: Health) -> SharedMemory:
    """Rank 0 creates the segment and publishes its address in the store."""
    segment = Segment(SharedMemory.bytes_needed(place.size)) if place.rank == 0 else None
    try:
        if segment is not None:
            store.set(_MEMORY_KEY, segment.address)
            mapped = segment.memory
        else:
            _wait_for(store, [_MEMORY_KEY], "rank 0 did not share its memory")
            mapped = open_segment(store.get(_MEMORY_KEY).decode())
        memory = SharedMemory(mapped, place.rank, place.size, health, spins=spins(place.local_size))
        memory.meet(MEET_TIMEOUT_S)
    finally:
        if segment is not None:
            segment.close()
    return memory


def _meet_in_store(place: RankPlacement, store: dist.Store) -> None:
    """A first barrier with a time limit. gloo's own would use that of its collectives, which must have none."""
    store.set(f"{_HERE_KEY}/{place.rank}", "")
    keys = [f"{_HERE_KEY}/{rank}" for rank in range(place.size)]
    _wait_for(store, keys, "ranks missing (the last part of each key)")


def _wait_for(store: dist.Store, keys: list[str], what: str) -> None:
    deadline = time.monotonic() + MEET_TIMEOUT_S
    while not store.check(keys):
        if time.monotonic() > deadline:
            absent = ", ".join(key for key in keys if not store.check([key]))
            raise RankError(f"{what} within {MEET_TIMEOUT_S:g} s: {absent}")
        time.sleep(0.01)
