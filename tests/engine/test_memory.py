"""What memory counts as free, and how many KV blocks are made of it."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models.engine import kv_pool
from atb_models.engine.config import EngineConfig
from atb_models.errors import CapacityError
from atb_models.machine import memory
from atb_models.plan.capacity import Deployment
from atb_models.plan.memory import RankMemory

CONFIG = EngineConfig(max_batch_size=4, max_seq_len=100, block_size=16)


class Planned(Deployment):
    """One whose memory is known."""

    def memory(self) -> RankMemory:
        return RankMemory(weights=5000, activations=3000, kv_per_token=1, block_size=16)


def choose(config: EngineConfig, usable: int) -> int:
    model = config.load_model_config()
    deployment = Planned(model, torch.float16, 1, kv_pool.engine_limits(config, model))
    return kv_pool.choose_kv_blocks(config, deployment, memory.Free(usable), 1)


def test_blocks_for_a_full_batch_or_what_fits() -> None:
    assert choose(CONFIG, 10**9) == 4 * 7
    assert choose(CONFIG, 8000 + 5 * 16) == 5
    with pytest.raises(CapacityError, match="the model does not fit: it needs .* may use 0.0 MiB of its device"):
        choose(CONFIG, 8000 + 15)


def test_blocks_that_were_asked_for() -> None:
    config = replace(CONFIG, kv_blocks=100)
    assert choose(config, 10**9) == 100
    assert choose(config, 8000 + 1600) == 100
    with pytest.raises(CapacityError, match=r"\(blocks of 16 tokens: 100\)(.|\n)*--kv_blocks 99"):
        choose(config, 8000 + 1599)


def test_ranks_share_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kept in (("RUNTIME_BYTES", 30), ("ADDRESS_SPACE_BYTES", 50)):
        monkeypatch.setattr(memory, name, kept)
    for name, left in (("_host_available", 1000), ("_cgroup_available", 600), ("_process_available", 200)):
        monkeypatch.setattr(memory, name, lambda left=left: left)
    free = memory.free_memory(torch.device("cpu"))
    assert [free.of_rank(ranks) for ranks in (1, 4, 6, 100)] == [150, 120, 70, -24]
    assert "ulimit" in free.where(1) and "control group" in free.where(6)
    assert memory.Free(7).of_rank(3) == 7 and "its device" in memory.Free(7).where(3)


@pytest.mark.parametrize(("ranks", "hosts", "usable"), [(2, 1, 50), (4, 1, 50), (8, 1, None), (8, 2, 50), (3, 2, None)])
def test_no_host_gives_more_ranks_than_it_has_devices(ranks: int, hosts: int, usable: int | None) -> None:
    assert kv_pool._usable_by(memory.Free(50, most_ranks=4), ranks, hosts) == usable


def test_process_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, limits = resource.getpagesize(), {resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    (tmp_path / "statm").write_text("100 50 10 1 0 70 0\n")
    for address_space, data, left in (
        (-1, -1, memory.UNLIMITED),
        (130, -1, 30 * page),
        (130, 80, 10 * page),
        (90, -1, 0),
    ):
        limits[resource.RLIMIT_AS], limits[resource.RLIMIT_DATA] = (
            x if x < 0 else x * page for x in (address_space, data)
        )
        assert memory._process_available(tmp_path / "statm") == left


def test_host_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemFree: 3 kB\nMemAvailable:  7 kB\n")
    assert memory._host_available(tmp_path / "meminfo") == 7 * 1024
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\n")
    with pytest.raises(CapacityError, match="meminfo has no MemAvailable line"):
        memory._host_available(tmp_path / "meminfo")


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/pod/job\n", {"pod/job/memory.": ("max", 5, 0), "pod/memory.": ("100", 70, 20)}, 50),
        ("0::/pod\n", {"pod/memory.": ("100", 70, 0), "memory.": ("90", 80, 0)}, 10),
        ("0::/pod\n", {"pod/memory.": ("100", 170, 0)}, 0),
        ("4:memory:/a\n", {"memory/a/memory.": ("1000", 900, 300)}, 400),
        ("0::/\n", {}, memory.UNLIMITED),
    ],
)
def test_cgroup_limits(own: str, files: dict[str, tuple[str, int, int]], left: int, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    v1 = own.startswith("4")
    names = ("limit_in_bytes", "usage_in_bytes") if v1 else ("max", "current")
    for stem, (limit, used, cache) in files.items():
        folder = (tmp_path / "fs" / stem).parent
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, used), strict=True):
            (folder / f"memory.{name}").write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{'total_' if v1 else ''}inactive_file {cache}\n")
    assert memory._cgroup_available(tmp_path / "fs", tmp_path / "own") == left
