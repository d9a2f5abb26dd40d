"""How many KV blocks a rank takes, and what memory it counts as free."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atb_models.engine import memory
from atb_models.engine.config import EngineConfig
from atb_models.errors import CapacityError

CONFIG = EngineConfig(max_batch_size=4, block_size=16)


def test_block_bytes() -> None:
    model = SimpleNamespace(num_hidden_layers=3, head_dim=8)
    assert memory.block_bytes(model, 2, 16, torch.float16) == 2 * 3 * 16 * 2 * 8 * 2  # type: ignore[arg-type]


def test_blocks_for_a_full_batch_or_what_fits() -> None:
    assert memory.choose_kv_blocks(CONFIG, 100, 1000, 10**9) == 4 * 7
    assert memory.choose_kv_blocks(CONFIG, 100, 1000, 10_000) == 8  # a fifth is kept
    with pytest.raises(CapacityError, match="0.00 GiB left.*1 blocks of 16 tokens take 0.00 GiB, 0 would fit.*--tp"):
        memory.choose_kv_blocks(CONFIG, 100, 1000, 1200)


def test_blocks_that_were_asked_for() -> None:
    config = EngineConfig(kv_blocks=100)
    assert memory.choose_kv_blocks(config, 100, 1000, 100_000) == 100
    with pytest.raises(CapacityError, match="100 blocks of 128 tokens take 0.00 GiB, 99 would fit.*--kv_blocks"):
        memory.choose_kv_blocks(config, 100, 1000, 99_999)


def test_ranks_share_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_host_available", lambda: 1000)
    monkeypatch.setattr(memory, "_cgroup_available", lambda: 600)
    assert memory.free_memory(torch.device("cpu"), 4) == 150


def test_host_available(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemFree: 3 kB\nMemAvailable:  7 kB\n")
    assert memory._host_available(tmp_path / "meminfo") == 7 * 1024
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\n")
    with pytest.raises(CapacityError, match="meminfo has no MemAvailable line; .*--kv_blocks"):
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
