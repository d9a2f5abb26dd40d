"""This machine as a chip: measured by the CPU library's loops where it serves, else by torch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from atb_models.machine.memory import last_level_cache
from atb_models.ops.native.library import active, load
from atb_models.plan import this_cpu
from atb_models.plan.chips import FIGURES, Chip
from atb_models.plan.this_cpu import BLOCK_BYTES, measure_cpu


def check(chip: Chip) -> None:
    assert chip.shared and chip.name == "this CPU" and set(chip.sources) == set(FIGURES)
    assert 0.1 < chip.bandwidth_gb_s < 10_000 and chip.latency_us == 0
    assert min(chip.peak(torch.float16), chip.peak(torch.bfloat16)) >= chip.peak(torch.float32) > 1e8
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert chip.peak(dtype, torch.int8) == chip.peak(dtype)  # int8 weights are multiplied as the activations' type
    assert chip.layouts == "cpu"


def test_torch_is_measured_where_no_library_serves() -> None:
    threads = torch.get_num_threads()
    chip = measure_cpu(2)
    assert torch.get_num_threads() == threads
    check(chip)
    for name in ("bandwidth_gb_s", "fp32_tflops"):
        assert "torch, no level of the CPU library serves" in chip.sources[name]
    assert chip.int8_tops is None


def test_the_library_is_measured_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATB_CPU_ISA")
    level = active().level
    if level is None:
        pytest.skip(f"no level of the CPU library serves: {active().why}")
    load(level.name)
    monkeypatch.setattr(this_cpu, "measure_torch", None)  # not called
    started = time.process_time()
    chip = measure_cpu(2)
    assert time.process_time() - started < 2 * 1.0, "processor time of two threads"
    check(chip)
    measured = f"measured now: the CPU library's fp32 multiply-add ({level.name}), 2 threads"
    assert chip.sources["fp32_tflops"].startswith(measured)
    assert "read loop" in chip.sources["bandwidth_gb_s"] and chip.sources["fp16_tflops"].startswith("as fp32")
    assert chip.peak(torch.float16) == chip.peak(torch.float32)
    dots = {"bf16": level.name == "avx512bf16", "int8": level.name != "avx2"}
    for name, has in dots.items():
        rate = chip.peak(torch.bfloat16 if name == "bf16" else torch.int8)
        assert (rate > 1.2 * chip.peak(torch.float32)) == has, name


def test_a_smaller_block_is_read_where_there_is_less_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATB_CPU_ISA")
    if active().level is None:
        pytest.skip(f"no level of the CPU library serves: {active().why}")
    assert "over 64 MiB" in measure_cpu(1, 70 << 20).sources["bandwidth_gb_s"]
    for cores, room in ((1, 60 << 20), (3, 79 << 20)):  # a further thread has a stack of its own
        with pytest.raises(MemoryError, match=f"{room} bytes are too few to measure this CPU"):
            measure_cpu(cores, room)
    assert BLOCK_BYTES == 192 << 20


def test_the_largest_cache_is_the_last_level(tmp_path: Path) -> None:
    for name, size in ("index0", "32K\n"), ("index2", "1M\n"), ("index3", "32768K\n"), ("index4", "unknown\n"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(size)
    assert last_level_cache(tmp_path) == 32 << 20
    assert last_level_cache(tmp_path / "none") == 0


def test_the_block_is_twice_the_last_level_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATB_CPU_ISA")
    if active().level is None:
        pytest.skip(f"no level of the CPU library serves: {active().why}")
    monkeypatch.setattr(this_cpu, "last_level_cache", lambda: 128 << 20)
    assert "over 256 MiB" in measure_cpu(1).sources["bandwidth_gb_s"]
