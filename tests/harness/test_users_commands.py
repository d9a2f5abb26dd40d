"""The two commands that MindIE's README of the model prints, as users type them, on eight ranks of this CPU.

The second is tried on two ranks by speed/test_performance.py.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.wide import write_config

BOOLQ = "bash run.sh pa_fp16 full_BoolQ 1 deepseek ${weight_path} 8"
SPEED = "bash run.sh pa_fp16 performance %s 1 deepseek ${weight_path} 8"
PRINTED = "[[2048,2048],[1024,1024],[512,512],[256,256]]"
SECONDS = 20 * 60
WIDE = """ --load_format dummy --config_overrides '{"num_hidden_layers": 4}'"""


def typed(root: Path, weights: Path, output: Path, line: str, flags: str = "") -> Path:
    """Run the line in run.sh's folder, within 20 minutes; the one record it leaves."""
    variables = {
        **os.environ,
        "PYTHON": sys.executable,
        "weight_path": str(weights),
        "ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
        "ATB_LLM_BENCHMARK_ENABLE": "1",
    }
    command = ["bash", "-c", f"{line}{flags} --device cpu --output_dir '{output}'"]
    ended = subprocess.run(
        command, cwd=root / "tests" / "modeltest", env=variables, capture_output=True, text=True, timeout=SECONDS
    )
    assert ended.returncode == 0, ended.stderr
    [record] = output.rglob("*_tp8*.json")
    return record


def questions(record: Path, count: int) -> list[dict[str, Any]]:
    """Those of the record, whose CSV file must say the same."""
    results = json.loads(record.read_text("utf-8"))["results"]
    rows = list(csv.reader(record.with_suffix(".csv").open(encoding="utf-8")))
    assert rows[1] == ["total", str(results["accuracy"]), str(results["correct"]), str(count)]
    assert results["n"] == len(results["questions"]) == count
    return list(results["questions"])


def lengths(record: Path) -> list[tuple[int, int]]:
    cases = json.loads(record.read_text("utf-8"))["results"]["cases"]
    assert all(case["batch"] == 1 and case["decode_ms"] > 0 for case in cases)
    return [(case["in"], case["out"]) for case in cases]


@pytest.mark.parametrize(("flags", "count"), [(" --limit 8", 8), pytest.param("", 3270, marks=pytest.mark.full)])
def test_boolq(
    root: Path, demo: Path, shared: Path, tmp_path: Path, clean_environ: None, flags: str, count: int
) -> None:
    record = typed(root, demo, tmp_path, BOOLQ, f"{flags} --data_dir '{shared / 'data' / 'boolq'}'")
    assert {question["golden"] for question in questions(record, count)} == {"True", "False"}


@pytest.mark.full
def test_performance(root: Path, demo: Path, tmp_path: Path, clean_environ: None) -> None:
    assert lengths(typed(root, demo, tmp_path, SPEED % PRINTED)) == [tuple(pair) for pair in json.loads(PRINTED)]


@pytest.mark.full
def test_real_widths(root: Path, demo: Path, shared: Path, tmp_path: Path, clean_environ: None) -> None:
    """Four layers of random weights, with the embedded checkpoint's tokenizer."""
    (weights := tmp_path / "weights").mkdir()
    write_config(weights)
    for path in demo.glob("tokenizer*"):
        shutil.copy(path, weights)
    data = f" --limit 40 --data_dir '{shared / 'data' / 'boolq'}'"
    questions(typed(root, weights, tmp_path / "accuracy", BOOLQ, WIDE + data), 40)
    record = typed(root, weights, tmp_path / "speed", SPEED % "[[256,256],[128,128]]", WIDE)
    assert lengths(record) == [(256, 256), (128, 128)]
