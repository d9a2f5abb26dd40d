"""benchmarks/native.py runs every operation and prints its shares of the limits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.native.cases import LEVELS


def test_native(built: list[str], root: Path) -> None:
    quick = [
        "--scale",
        "16",
        "--repeats",
        "2",
        "--rows",
        "1,9",
        "--dtype",
        "fp16,w8a16,w4a16,w8a8_dynamic,kv_int8",
        "--level",
        LEVELS[-1],
    ]
    command = [sys.executable, str(root / "benchmarks" / "native.py"), *quick]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=200)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 2 * 4 * 4 + 2 * 4 + 2 * 2 * 5 + 2 * 2  # linear, experts, attention, small
    share = re.compile(
        r"\w+ (fp16|w\w+|kv_int8) .* ms  read +\d+% compute +\d+%(, torch \d+\.\d times that)?  \[limits \d.*]"
    )
    assert all(share.fullmatch(line) for line in lines), ended.stdout
