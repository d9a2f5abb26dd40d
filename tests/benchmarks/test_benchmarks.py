"""Each benchmark runs and prints its figures. Memory is judged, and of times the bound from below."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from atb_models import SamplingParams
from atb_models.ops.cost import Cost
from atb_models.ops.native.library import active
from atb_models.plan.chips import Chip, load_chips
from atb_models.plan.roofline import Arithmetic
from atb_models.plan.times import Work
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


WIDTH = r"""{what}, level {level} \(.*\), 1 thread
limits, medians of {rounds}: (?P<read>\S+) GB/s read, fp16 \d+ .*, bf16 \d+ .*, fp32 (?P<peak>\d+) GFLOP/s{int8}
decode:  (?P<decode>\S+) ms a token, (?P<size>\S+) GB of weights, (?P<share>\d+)% of the read limit
(?:outside the library: (?P<outside>\S+) ms a token, (?P<outside_share>\S+)% of a decode step
)?prefill: (?P<rate>\d+) tokens/s, (?P<work>\d+) GFLOP, (?P<compute>\d+)% of the peak
"""


def width(root: Path, what: str, *flags: str, level: str, int8: str = "", rounds: str) -> dict[str, float]:
    printed = run(root, "width.py", *flags)
    form = WIDTH.format(what=re.escape(what), level=level, int8=int8, rounds=rounds)
    found = re.fullmatch(form, printed)
    assert found is not None, printed
    return {name: float(figure) for name, figure in found.groupdict().items() if figure is not None}


def test_width_with_the_librarys_limits(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATB_CPU_ISA", raising=False)
    level = active().level
    if level is None:
        pytest.skip(f"no level of the CPU library serves: {active().why}")
    fields = {"n_routed_experts": 8, "num_experts_per_tok": 2, "vocab_size": 16384}
    flags = ("--model_path", str(write_config(tmp_path, **fields)), "--layers", "2", "--tokens", "3", "--rounds", "2")
    int8 = "" if level.name in ("avx2", "neon") else r", int8 \d+ GOP/s"
    found = width(root, "fp16, 2 layers", *flags, level=level.name, int8=int8, rounds="2 rounds")
    attention, expert = 4 * 2048 * 2048, 3 * 2048 * 1408
    but_last = 2 * attention + 3 * 2048 * 10944  # the last feed-forward takes the last token of a prompt alone
    assert found["size"] == pytest.approx(2e-9 * (but_last + (2 + 2) * expert + 2048 * 16384), rel=0.01)
    assert found["work"] == pytest.approx(2e-9 * 256 * but_last, rel=0.05)
    assert 0 < found["outside"] < found["decode"] and 0 < found["outside_share"] < 100
    assert found["share"] == pytest.approx(100 * found["size"] * 1e3 / found["decode"] / found["read"], rel=0.3)
    assert found["compute"] == pytest.approx(100 * found["rate"] / 256 * found["work"] / found["peak"], rel=0.3)


def test_width_takes_the_types_of_the_commands(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    for dtype, quantize, what in (
        ("auto", (), "bf16"),
        ("bfloat16", (), "bf16"),
        ("fp16", ("--quantize", "w8a16"), "fp16, weights as w8a16"),
        ("fp16", ("--kv_dtype", "int8"), "fp16, KV cache as int8"),
    ):
        flags = ("--model_path", str(folder), "--layers", "2", "--tokens", "3", "--rounds", "1", *quantize)
        found = width(root, f"{what}, 2 layers", *flags, "--dtype", dtype, level="reference", rounds="1 round")
        assert "outside" not in found


def test_each_round_of_width_has_its_own_limits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    import width

    events, steps = [], iter(((9.0, 9.0), (1.0, 0.2), (0.5, 0.1), (2.0, 0.4)))
    limits, any_chip = iter((10.0, 20.0, 5.0)), next(iter(load_chips().values()))

    class Llm:
        _runner = SimpleNamespace(model_config=SimpleNamespace(vocab_size=100))

        def generate(self, prompts: list[list[int]], params: SamplingParams) -> None:
            assert [len(ids) for ids in prompts] == [256] and params.max_tokens == 5
            events.append("run")
            self.steps = next(steps)

        def reset_timings(self) -> None:
            self.steps = None

        def metrics(self) -> dict[str, list[float]]:
            return dict(zip(("prefill_step_s", "decode_step_s"), ([one] for one in self.steps), strict=True))

    def measure() -> Chip:
        events.append("limits")
        limit = next(limits)
        return replace(any_chip, bandwidth_gb_s=limit, fp32_tflops=limit)

    rounds = width.timed(Llm(), 3, 4, measure)
    assert events == ["run", *["limits", "run"] * 3]
    # With the limits of another round these shares would be others.
    assert [one.decode_share(10**9) for one in rounds] == pytest.approx([0.5] * 3)
    half = Work(Cost(flops=1.25e12), Arithmetic(torch.float32, torch.float32), calls=2)
    assert [one.prefill_share([half, half]) for one in rounds] == pytest.approx([0.5] * 3)


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
