"""Quantised checkpoints from outside: written by `atb-models quantize`, run by the words of any other, compared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atb_models.demo import boolq_path

Modeltest = Callable[..., subprocess.CompletedProcess[str]]
QUESTIONS = 32
BOOLQ = ("--device", "cpu", "--output_dir", "out", "--data_dir", boolq_path(), "--limit", QUESTIONS)
PLACE = "out/results/CPU/{test}/{mode}/{storage}/deepseek"


@pytest.fixture(scope="module")
def checkpoint(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint with weights of 4 bits: coarse enough to change every question's log-probabilities."""
    folder = tmp_path_factory.mktemp("quantised") / "w4a16"
    command = [sys.executable, "-m", "atb_models", "quantize", demo, folder, "--to", "w4a16", "--no_check"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120)
    return folder


def record(folder: Path, **place: str) -> tuple[Path, dict[str, Any]]:
    """The one record in the folder of results that a run must have written to."""
    (path,) = (folder / PLACE.format(**place)).glob("*.json")
    return path, json.loads(path.read_text("utf-8"))


def test_the_cost_of_quantisation_question_by_question(
    modeltest: Modeltest, demo: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for weights in (demo, checkpoint):
        modeltest("pa_fp16", "full_BoolQ", 8, "deepseek", weights, 1, *BOOLQ)
    place = {"test": "precision_test", "mode": "full_BoolQ"}
    (a, floats), (b, integers) = (record(tmp_path, **place, storage=name) for name in ("fp16", "fp16_w4a16"))
    assert floats["environment"]["quantization"] is None and integers["environment"]["quantization"] == "w4a16"
    assert integers["options"]["quantize"] is None
    lines = modeltest("compare", a, b).stdout.splitlines()
    assert "| quantize |  | w4a16 |" in lines and f"| weight_dir | {demo} | {checkpoint} |" in lines
    pairs = [
        [question["logprobs"] for question in pair]
        for pair in zip(floats["results"]["questions"], integers["results"]["questions"], strict=True)
    ]
    changes = [max(abs(x[choice] - y[choice]) for choice in ("yes", "no")) for x, y in pairs]
    assert len(changes) == QUESTIONS and max(changes) > 1e-3
    (said,) = [line for line in lines if line.startswith("log-probabilities changed by ")]
    mean, most = (f"{value:.4f}" for value in (sum(changes) / QUESTIONS, max(changes)))
    assert said.startswith(f"log-probabilities changed by {mean} on average and {most} at most, at dev.jsonl:")
    assert any(line.startswith("B - A: ") and "paired; flipped: " in line for line in lines)


def test_its_speed_in_bf16(modeltest: Modeltest, demo: Path, checkpoint: Path, tmp_path: Path) -> None:
    words = ("pa_bf16", "performance", "[[8,4]]", 1, "deepseek")
    for weights in (demo, checkpoint):
        modeltest(*words, weights, 1, "--device", "cpu", "--output_dir", "out", "--no_plot", "--chip", "H200")
    place = {"test": "performance_test", "mode": "performance"}
    (a, _), (b, _) = (record(tmp_path, **place, storage=name) for name in ("bf16", "bf16_w4a16"))
    lines = modeltest("compare", a, b).stdout.splitlines()
    assert "| quantize |  | w4a16 |" in lines and any(line.startswith("| 1 | 8 | 4 | ") for line in lines)
    modeltest("report", "out")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "bf16, weights as w4a16" in page


def test_the_cost_of_an_int8_cache(modeltest: Modeltest, demo: Path, tmp_path: Path) -> None:
    """Beside weights of floats and of integers: folders, records, the comparison and the page name it."""
    for more in ((), ("--kv_dtype", "int8"), ("--kv_dtype", "int8", "--quantize", "w8a16")):
        modeltest("pa_fp16", "full_BoolQ", 8, "deepseek", demo, 1, *BOOLQ, *more)
    place = {"test": "precision_test", "mode": "full_BoolQ"}
    names = ("fp16", "fp16_kv_int8", "fp16_w8a16_kv_int8")
    (a, floats), (b, integers), _ = (record(tmp_path, **place, storage=name) for name in names)
    assert (floats["options"]["kv_dtype"], integers["options"]["kv_dtype"]) == ("auto", "int8")
    lines = modeltest("compare", a, b).stdout.splitlines()
    assert "| kv_dtype |  | int8 |" in lines and not any("| quantize |" in line for line in lines)
    assert any(line.startswith("log-probabilities changed by 0.0") for line in lines)
    modeltest("report", "out")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "fp16, KV cache as int8" in page and "fp16, weights as w8a16, KV cache as int8" in page


def test_the_flag_is_refused_beside_it(modeltest: Modeltest, checkpoint: Path) -> None:
    ended = modeltest("pa_fp16", "full_BoolQ", 8, "deepseek", checkpoint, 1, *BOOLQ, "--quantize", "w8a16", status=2)
    assert "quantize is w8a16, but the checkpoint's weights are quantised already (ModelSlim, w4a16); leave" in (
        ended.stderr
    )
