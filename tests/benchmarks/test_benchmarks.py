"""Each benchmark runs and prints its figures. Memory is judged, and of times the bound from below."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_checkpoint
from tests.wide import write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, max_position_embeddings=1024)
    return tmp_path


def run(root: Path, name: str, *argv: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "benchmarks" / name), *argv]
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_steps(root: Path) -> None:
    printed = run(root, "steps.py", "--tp", "2", "--tokens", "6")
    assert re.search(r"tp 2, batch 1: decode step median \d+\.\d\d ms\n", printed)
    assert re.search(r"batch 64: outside the model, median \d+\.\d\d ms a step \(host \d+\.\d\d, input", printed)


def test_width(root: Path, folder: Path) -> None:
    printed = run(root, "width.py", "--model_path", str(folder), "--layers", "2", "--tokens", "3")
    assert re.search(r"fp16, 2 layers, 1 threads, read bandwidth \d+\.\d GB/s\n", printed)
    assert re.search(r"decode: .* \d+% of the bandwidth\nprefill: .* \d+% of its rate\n", printed)


def test_width_takes_the_types_of_the_commands(root: Path, folder: Path) -> None:
    for dtype in ("auto", "bfloat16"):
        printed = run(root, "width.py", "--model_path", str(folder), "--layers", "1", "--tokens", "3", "--dtype", dtype)
        assert printed.startswith("bf16, 1 layers")


def test_loading(root: Path, folder: Path) -> None:
    printed = run(root, "loading.py", "--model_path", str(folder), "--layers", "2", "--tp", "2")
    assert len(re.findall(r"rank \d: shard \d+ MiB, .*: within\n", printed)) == 2


# By default the width of the hidden state alone is the real model's; with --full everything but the layers.
LESS = {"first_k_dense_replace": 0, "n_routed_experts": 16, "num_experts_per_tok": 2, "vocab_size": 32000}
FEW = ("--layers", "1", "--dtype", "fp32")


def cases(few: int) -> list[object]:
    """(fields of the model, flags)"""
    whole = [pytest.param({}, ("--tp", tp), marks=pytest.mark.full, id=f"whole-{tp}") for tp in ("1", "4")]
    return [pytest.param(LESS, (*FEW, "--tp", str(few)), id=f"less-{few}"), *whole]


INT8 = pytest.param(LESS, (*FEW, "--quantize", "w8a16", "--tp", "1"), id="less-int8")


@pytest.mark.parametrize(("fields", "flags"), [*cases(2), INT8])
def test_the_planned_peak_is_within_a_tenth_of_the_measured(
    root: Path, tmp_path: Path, fields: dict[str, int], flags: tuple[str, ...]
) -> None:
    printed = run(root, "memory.py", "--model_path", str(write_config(tmp_path, **fields)), *flags)
    ratios = re.findall(r"rank \d, (?:decode of 16 rows|prefill of 1024): planned .* ratio (\d\.\d+)\n", printed)
    assert len(ratios) == 2 * int(flags[-1]) and all(0.9 <= float(ratio) <= 1.1 for ratio in ratios)


@pytest.mark.parametrize(("fields", "flags"), cases(1))
def test_predicted_times_bound_the_measured_from_below(
    root: Path, tmp_path: Path, fields: dict[str, int], flags: tuple[str, ...]
) -> None:
    printed = run(root, "bound.py", "--model_path", str(write_config(tmp_path, **fields)), *flags)
    steps = re.findall(r"(.*), tp \d: at least (\d+\.\d) ms, measured (\d+\.\d) ms", printed)
    assert [name for name, _, _ in steps] == ["prefill of 256", "decode of 1 row", "decode of 16 rows"]
    assert all(0 < float(bound) <= float(measured) for _, bound, measured in steps)
