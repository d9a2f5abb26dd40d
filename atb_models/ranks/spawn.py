"""A plain Python process as rank 0: how it starts, watches and ends ranks 1 to tp-1."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import torch

from atb_models import env
from atb_models.errors import ConfigError
from atb_models.machine.device import check_device_for_each
from atb_models.ranks.group import MEET_TIMEOUT_S, RankGroup, RankPlacement, connect, group_from_environment, spins
from atb_models.ranks.health import Health
from atb_models.ranks.lifetime import LAUNCHER_PID, child_environment
from atb_models.ranks.segment import Segment
from atb_models.ranks.shared_memory import SharedMemory
from atb_models.wording import message_lines

if TYPE_CHECKING:
    from torch.distributed import TCPStore

MODEL_RANK = "atb_models.engine.rank:run_model"
LOOPBACK = "127.0.0.1"
_EXIT_TIMEOUT_S = 3.0  # for ranks to end after they were told to; then they are killed
_GRACE_S = 0.3  # after a rank's error, which another rank's death may have caused
_UNRESPONSIVE_S = 3.0  # until this process ends if its main thread cannot be interrupted


def open_group(config_json: str, tp: int, device: str) -> RankGroup:
    """The group for an engine: torchrun's if this process is one of its ranks, else `tp` ranks started here.

    Raises ConfigError if WORLD_SIZE and `tp` differ; tp 1, the default, agrees with any WORLD_SIZE.
    """
    world = RankPlacement.from_environment(device).size
    if env.is_set("WORLD_SIZE") and tp not in (1, world):
        raise ConfigError(f"tp {tp} does not match torchrun's WORLD_SIZE {world}; leave tp out or make them equal")
    if world > 1 or tp == 1:
        return group_from_environment(device)
    return spawn(tp, device, config_json)


def spawn(size: int, device: str, payload: str, target: str = MODEL_RANK) -> RankGroup:
    """Start ranks 1 to size-1 and return rank 0's group; each of them runs `target(payload, group)`, "module:function".

    Raises ConfigError if there are fewer devices than ranks, and RankError when a rank dies: here, or in a later call
    that waits for it. The other ranks are killed.
    """
    check_device_for_each(device, size)
    place, health = RankPlacement(0, size, 0, size, device), Health()
    segment = Segment(SharedMemory.bytes_needed(size))
    try:
        memory = SharedMemory(segment.memory, 0, size, health, spins=spins(size))
        store = None if device == "cpu" else open_store(size)
        setup = {
            "memory": segment.address,
            "port": store.port if store else 0,
            "threads": torch.get_num_threads(),
            "target": target,
            "payload": payload,
        }
        workers = _Workers(place, setup, health)

        def close() -> None:
            workers.close(kill=health.failure is not None)

        try:
            with health.doing("starting the ranks"):
                workers.start()
                memory.meet(MEET_TIMEOUT_S)
                group = connect(place, memory, store, health, close)
        except BaseException:
            workers.close(kill=True)
            raise
    finally:
        segment.close()
    return group


def open_store(size: int) -> TCPStore:
    """Where ranks that compute on devices meet: at the user's MASTER_PORT, else at any free port.

    Raises ConfigError for a MASTER_PORT that is taken.
    """
    from torch.distributed import TCPStore

    port = env.get("MASTER_PORT") or 0
    try:
        return TCPStore(LOOPBACK, port, size, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        if port == 0:
            raise
        raise ConfigError(f"MASTER_PORT={port} cannot be used: {message_lines(error)[0]}; export another") from None


class _Workers:
    """The child processes and the thread that starts, watches and ends them.

    One thread does all this, and lives as long as the ranks: the kernel kills them when the thread that made them ends.
    Each rank has a socket, which carries its setup to it and its error back; the rank has ended when the socket has.
    """

    def __init__(self, place: RankPlacement, setup: dict[str, object], health: Health) -> None:
        self._place, self._setup, self._health = place, setup, health
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._channels: dict[int, socket.socket] = {}
        self._reports: dict[int, bytes] = {}
        self._stop, self._stop_sender = socket.socketpair()
        self._kill = False
        self._thread = threading.Thread(target=self._live, name="rank watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, kill: bool) -> None:
        """Kill the ranks at once, or wait a short time for them to end, then kill them. May be repeated."""
        if self._thread.is_alive():
            self._kill = kill
            self._stop_sender.send(b"!")
            if threading.current_thread() is self._thread:
                return  # called in that very thread, by the garbage collector
            self._thread.join()
        self._stop_sender.close()
        self._stop.close()

    def _live(self) -> None:
        try:
            for rank in range(1, self._place.size):
                self._start_rank(rank)
            failure = self._watch()
        except Exception as error:
            failure = f"the ranks could not be started or watched: {error!r}"
        for child in self._children.values():
            child.kill()
        if failure is not None:
            self._health.fail(failure)
        for child in self._children.values():
            child.wait()
        for channel in self._channels.values():
            channel.close()
        if failure is not None:
            self._insist(failure)

    def _start_rank(self, rank: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._children[rank] = subprocess.Popen(
                [sys.executable, "-m", "atb_models.engine.rank", str(theirs.fileno())],
                env=_environment(rank, self._place.size, self._place.device),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # rank 0 alone handles Ctrl-C in the terminal
            )
        self._channels[rank], self._reports[rank] = ours, b""
        place = dataclasses.replace(self._place, rank=rank, local_rank=rank)
        with contextlib.suppress(OSError):  # it has died, which _watch will see
            ours.sendall(json.dumps({**self._setup, "place": dataclasses.asdict(place)}).encode() + b"\n")

    def _watch(self) -> str | None:
        """Wait until all ranks have ended as told, or time is up: None. If one ends otherwise: what happened."""
        failure, deadline = None, math.inf
        with selectors.DefaultSelector() as selector:
            for channel in (self._stop, *self._channels.values()):
                selector.register(channel, selectors.EVENT_READ)
            running = dict(self._channels)
            while running and (now := time.monotonic()) < deadline:
                ready = {key.fileobj for key, _ in selector.select(None if deadline == math.inf else deadline - now)}
                if self._stop in ready:
                    self._stop.recv(1)
                    deadline = 0.0 if self._kill else min(deadline, now + _EXIT_TIMEOUT_S)
                for rank in [rank for rank, channel in running.items() if channel in ready]:
                    if (status := self._status(rank)) is None:
                        continue
                    selector.unregister(running.pop(rank))
                    if status < 0 and not self._health.closing:
                        return self._cause(rank, status)
                    if not self._health.closing:
                        failure = failure or self._cause(rank, status)
                        deadline = min(deadline, time.monotonic() + _GRACE_S)
        return failure

    def _status(self, rank: int) -> int | None:
        """Read what a rank reports. Its exit status once it has ended (negative: minus the signal), else None."""
        try:
            data = self._channels[rank].recv(1 << 16)
        except ConnectionResetError:  # the rank ended before it read its setup
            data = b""
        self._reports[rank] += data
        if data:
            return None
        child = self._children[rank]
        try:
            return child.wait(1.0)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()

    def _cause(self, rank: int, status: int) -> str:
        name = f"rank {rank} (pid {self._children[rank].pid})"
        if self._reports[rank]:
            return f"{name}: {self._reports[rank].decode(errors='replace')}"
        if status >= 0:
            return f"{name} ended with status {status} {self._health.during()}"
        return f"{name} was killed by signal {-status} ({_signal_name(-status)}) {self._health.during()}"

    def _insist(self, failure: str) -> None:
        """End the process if its main thread waits for a dead rank in code that cannot be interrupted."""
        deadline = time.monotonic() + _UNRESPONSIVE_S
        while self._health.activity is not None and not self._health.reported.wait(0.05):
            if time.monotonic() > deadline:
                sys.stderr.write(f"\n{failure}; rank 0 (pid {os.getpid()}) could not be interrupted and ends\n")
                sys.stderr.flush()
                os._exit(1)


def _environment(rank: int, size: int, device: str) -> dict[str, str]:
    """A rank's environment: torchrun's variables, this process as launcher, and where to find this package."""
    environment = child_environment()
    environment.update({name: str(rank) for name in ("RANK", "LOCAL_RANK")})
    environment.update({name: str(size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")})
    environment[LAUNCHER_PID] = str(os.getpid())
    return environment


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"
