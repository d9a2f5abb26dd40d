"""What ranks exchange, to the bit, at every size of group."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch.distributed import HashStore, TCPStore

from atb_models.errors import ConfigError, RankError
from atb_models.ranks import group as ranks
from atb_models.ranks.group import RankPlacement, group_from_environment, join
from atb_models.ranks.health import Health
from atb_models.ranks.spawn import open_group, open_store, spawn
from tests.ranks import toys


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.full), 8])
def test_ranks_of_one_host(size: int) -> None:
    """All collectives and messages, the group's end, and that waiting for a step costs no CPU time."""
    with spawn(size, "cpu", "", "tests.ranks.toys:check_all") as group, warnings.catch_warnings():
        warnings.simplefilter("error")
        toys.check_all("", group)
        for _ in range(3):
            toys.lead_step(group)
        ranks = toys.children()
        assert len(ranks) == size - 1
        time.sleep(0.2)
        before = [toys.cpu_ticks(pid) for pid in ranks]
        time.sleep(1)
        assert max(toys.cpu_ticks(pid) - ticks for pid, ticks in zip(ranks, before, strict=True)) <= 5
        began = time.monotonic()
    assert time.monotonic() - began < 2, "ranks that wait for a step end when told to"
    toys.wait_until_dead(ranks, 0)
    with pytest.raises(RankError, match="closed"):
        group.all_reduce(torch.ones(4))


def test_single_rank_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    group = open_group("{}", 1, "cpu")
    x = torch.ones(3)
    assert group.all_reduce(x) is x and group.all_gather(x) is x and group.minimum(5) == 5
    assert (group.rank, group.size, group.ranks_here, group.local) == (0, 1, 1, True)
    group.send_step(np.zeros(1, np.int32))
    group.barrier("nothing")
    group.close()


def test_tp_that_differs_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"tp 2 .* WORLD_SIZE 4"):
        open_group("{}", 2, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(ConfigError, match="WORLD_SIZE='four' must be a whole number from 1 to"):
        group_from_environment("cpu")


def test_an_empty_variable_of_torchrun_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setattr("atb_models.ranks.spawn.spawn", lambda *given: given)
    assert open_group("{}", 2, "cpu") == (2, "cpu", "{}")


def test_ranks_on_devices_meet_at_the_users_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    free = open_store(2)
    monkeypatch.setenv("MASTER_PORT", str(free.port))
    with pytest.raises(ConfigError, match=f"MASTER_PORT={free.port} cannot be used: .*; export another"):
        open_store(2)
    port = free.port
    del free
    assert open_store(2).port == port


def test_several_hosts() -> None:
    """Ranks that share no memory, only a store: gloo carries the same sums to the same bits, and messages."""
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    program = f"from tests.ranks import toys; toys.other_host({store.port})"
    with subprocess.Popen([sys.executable, "-c", program]) as other:
        with join(RankPlacement(0, 2, 0, 1, "cpu"), store, Health()) as group:
            assert not group.local
            toys.check_hosts(group)
        assert other.wait(5) == 0
    assert not torch.distributed.is_initialized()


def test_host_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BARRIER_TIMEOUT_S", 0.2)
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    program = f"from tests.ranks import toys; toys.sleeping_host({store.port})"
    with subprocess.Popen([sys.executable, "-c", program]) as other:
        with join(RankPlacement(0, 2, 0, 1, "cpu"), store, Health()) as group:
            with pytest.raises(RankError, match="waiting for all ranks to finish loading.*Ranks 1 failed"):
                group.barrier("loading")
        other.kill()


def test_rank_that_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "MEET_TIMEOUT_S", 0.2)
    for local_size, message in ((1, "within 0.2 s: atb_models/here/1"), (2, "ranks missing after 0.2 s: 1")):
        with pytest.raises(RankError, match=message):
            join(RankPlacement(0, 2, 0, local_size, "cpu"), HashStore(), Health())
