"""A spawned rank: `python -m atb_models.engine.rank <fd>`, where fd is the channel to rank 0 (see spawn.py)."""

from __future__ import annotations

import sys

from atb_models.ranks.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent()  # before the imports that take seconds

import json
import os
import socket
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

from atb_models.errors import AtbError
from atb_models.machine.imports import import_torch_for_good

if TYPE_CHECKING:
    from atb_models.ranks.group import RankGroup


def main(fd: int) -> int:
    """Join the group, run the target and return the exit status; an error goes to rank 0 through the channel."""
    channel = socket.socket(fileno=fd)
    channel.set_inheritable(False)
    try:
        with channel.makefile("rb") as lines:
            setup = json.loads(lines.readline())
        module, _, function = setup["target"].partition(":")
        group = _join(setup)
        getattr(import_module(module), function)(setup["payload"], group)
        group.close()
        return 0
    except BaseException as error:
        channel.sendall(_describe(error).encode())
        return error.exit_status if isinstance(error, AtbError) else 1


def run_model(payload: str, group: RankGroup) -> None:
    """The default target: hold this rank's part of a model and execute rank 0's steps. payload: an EngineConfig."""
    from atb_models.engine.config import EngineConfig
    from atb_models.engine.model_runner import serve

    config = EngineConfig.from_json(payload)
    serve(config, config.load_model_config(), group)


def _join(setup: dict[str, Any]) -> RankGroup:
    with import_torch_for_good():
        import torch

        from atb_models.ranks.group import MEET_TIMEOUT_S, RankPlacement, connect, spins
        from atb_models.ranks.health import Health
        from atb_models.ranks.segment import open_segment
        from atb_models.ranks.shared_memory import SharedMemory

    place, health = RankPlacement(**setup["place"]), Health()
    memory = SharedMemory(open_segment(setup["memory"]), place.rank, place.size, health, spins=spins(place.size))
    store = None
    if setup["port"]:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", setup["port"], place.size, is_master=False, wait_for_workers=False)
    torch.set_num_threads(setup["threads"])  # at most as many as rank 0's process has
    memory.meet(MEET_TIMEOUT_S)
    return connect(place, memory, store, health)


def _describe(error: BaseException) -> str:
    """One line for what the user can mend, the traceback for the rest."""
    if isinstance(error, AtbError):
        return f"{type(error).__name__}: {error}"
    return "".join(traceback.format_exception(error)).strip()


if __name__ == "__main__":
    status = main(int(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to do, and no thread of a library can hold it up
