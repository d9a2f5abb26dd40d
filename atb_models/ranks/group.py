"""The group of ranks that hold one model: its collectives, the step messages from rank 0, and how it comes together."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from atb_models import env
from atb_models.errors import ConfigError, RankError
from atb_models.machine.cores import available_cores, set_threads
from atb_models.machine.device import rank_device
from atb_models.ranks.health import Health
from atb_models.ranks.lifetime import die_with_parent
from atb_models.ranks.segment import Segment, open_segment
from atb_models.ranks.shared_memory import SharedMemory

if TYPE_CHECKING:
    import torch.distributed as dist

MEET_TIMEOUT_S = 600.0
# Ranks read the same files at about the same time: one that comes so much later than another does not come.
BARRIER_TIMEOUT_S = 1800.0
CLOSE_TIMEOUT_S = 3.0
# While there is a core for each rank, it may ask this often for the others before it sleeps (about 0.1 ms).
SPINS = 100
_MEMORY_KEY = "atb_models/memory"
_HERE_KEY = "atb_models/here"
_T = TypeVar("_T")


@dataclass(frozen=True)
class RankPlacement:
    """Where a rank stands: its number among all ranks and among those of its host, and its device type."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: str

    @classmethod
    def from_environment(cls, device: str) -> RankPlacement:
        """torchrun's variables; a process without them is the only rank."""
        rank, size = env.get("RANK") or 0, env.get("WORLD_SIZE") or 1
        absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not env.is_set(name)]
        if rank >= size or (size > 1 and absent):
            what = f"without {', '.join(absent)}" if size > 1 and absent else f"with RANK {rank}"
            raise ConfigError(f"WORLD_SIZE {size} {what}; unset them, or start the ranks with torchrun")
        return cls(rank, size, env.get("LOCAL_RANK") or 0, env.get("LOCAL_WORLD_SIZE") or size, device)


class Collectives(Protocol):
    """What moves tensors between ranks."""

    def all_reduce(self, x: Tensor) -> Tensor: ...

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor: ...


class Transport(Collectives, Protocol):
    """What also moves messages; its tensors are on the CPU."""

    def barrier(self, name: str, timeout: float) -> None: ...

    def send(self, message: np.ndarray | None) -> None: ...

    def receive(self) -> np.ndarray | None: ...


class RankGroup:
    """One rank's view of the group. Every rank makes the same collective calls in the same order.

    rank, size: this rank and how many there are; ranks_here: how many on this host; local: all of them; device: where
    this rank computes. Every wait for another rank raises RankError when one has died.
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
        """host: carries messages and CPU tensors, None for a single rank. tensors: the device's, None is `host`."""
        self.rank, self.size, self.ranks_here = place.rank, place.size, place.local_size
        self.local = place.local_size == place.size
        self.device = device
        self.health = health or Health()
        self._host, self._tensors = host, tensors or host
        self._end = weakref.finalize(self, _end, os.getpid(), host if self.rank == 0 else None, self.health, on_close)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place: the same bits on every rank; on CPUs in rank order in float32."""
        return x if self.size == 1 else _open(self._tensors).all_reduce(x)

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """The ranks' equally shaped tensors, concatenated on `dim` in rank order."""
        return x if self.size == 1 else _open(self._tensors).all_gather(x, dim)

    def minimum(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return value if self.size == 1 else int(_open(self._host).all_gather(torch.tensor([value])).min())

    def barrier(self, name: str) -> None:
        """Wait for the other ranks to finish what `name` says, e.g. "loading"; RankError if one takes too long."""
        if self.size > 1:
            with self.doing(f"waiting for all ranks to finish {name}"):
                _open(self._host).barrier(name, BARRIER_TIMEOUT_S)

    def send_step(self, message: np.ndarray) -> None:
        """Rank 0: one step, a one-dimensional int32 array of any length, to all other ranks."""
        assert self.rank == 0 and message.dtype == np.int32 and message.ndim == 1
        if self.size > 1:
            _open(self._host).send(message)

    def receive_step(self) -> np.ndarray | None:
        """The other ranks: the next step, or None once rank 0 has closed. Waits without limit and without the CPU."""
        assert self.rank > 0, "rank 0 sends the steps"
        return _open(self._host).receive()

    def doing(self, activity: str) -> AbstractContextManager[None]:
        """A section in which all ranks act together, e.g. `with group.doing("loading weights"):`, "computing a step".

        Its name appears in the error when a rank dies. An exception that leaves it fails the group, since the ranks are
        out of step then. If a rank dies while a spawned group's rank 0 is in such a section and cannot be interrupted
        within 3 s, that process ends. A single rank is never out of step with itself.
        """
        return self.health.doing(activity) if self.size > 1 else contextlib.nullcontext()

    def check(self) -> None:
        """Raise RankError if a rank has died; for long operations of one rank, such as loading."""
        self.health.check()

    def close(self) -> None:
        """Rank 0: let the other ranks end, and wait for those it started. Safe to repeat, and after a failure.

        A group that is dropped, or left over when the process exits, is closed then.
        """
        self._host = self._tensors = None
        self._end()

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def group_from_environment(device: str) -> RankGroup:
    """The group that torchrun's variables describe; a single rank where there are none.

    Raises ConfigError for variables that make no sense, RankError when the ranks do not come together in 10 minutes.
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
    """Meet the other ranks through a store, in shared memory where one host has them all."""
    memory = None
    if place.local_size == place.size:
        memory = _share_memory(place, store, health)
        # torchrun ends us all when a rank dies; where something else started the ranks, rank 0 watches the others and
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
    """The group on the transports that its place asks for; the store is needed for devices and for several hosts."""
    device = rank_device(place.device, place.local_rank)
    set_threads(place.local_size)
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
    """How often to look for the others before sleeping: not at all where they wait for this rank's core."""
    return SPINS if ranks_here <= available_cores() else 0


def _end(owner: int, host: Transport | None, health: Health, on_close: Callable[[], None]) -> None:
    """Rank 0 (the one with a `host` here) tells the others to end; who does not listen in time is not waited for."""
    if os.getpid() != owner:
        return  # a process forked from the rank has only copies of its objects
    health.expect_end(CLOSE_TIMEOUT_S)
    try:
        if host is not None and health.failure is None:
            with contextlib.suppress(RankError):
                host.send(None)
    finally:
        on_close()


def _open(transport: _T | None) -> _T:
    if transport is None:
        raise RankError("the group of ranks is closed")
    return transport


def _share_memory(place: RankPlacement, store: dist.Store, health: Health) -> SharedMemory:
    """Rank 0 makes the segment and tells the others through the store where it is."""
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
    """A first meeting with a time limit: gloo's own has the limit of its collectives, of which they must have none."""
    store.set(f"{_HERE_KEY}/{place.rank}", "")
    keys = [f"{_HERE_KEY}/{rank}" for rank in range(place.size)]
    _wait_for(store, keys, "ranks not there (the last part of the name)")


def _wait_for(store: dist.Store, keys: list[str], what: str) -> None:
    deadline = time.monotonic() + MEET_TIMEOUT_S
    while not store.check(keys):
        if time.monotonic() > deadline:
            absent = ", ".join(key for key in keys if not store.check([key]))
            raise RankError(f"{what} within {MEET_TIMEOUT_S:g} s: {absent}")
        time.sleep(0.01)
