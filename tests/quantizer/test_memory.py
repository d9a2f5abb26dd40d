"""Peak memory of the command: one tensor and its result, however many layers there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

# The resident memory with nothing but the imports, and at the end the most that there ever was.
PROGRAM = """
import re, sys
from pathlib import Path
import atb_models.quantizer.run
from atb_models import cli
from atb_models.graph.compiler import import_compiler
import_compiler()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
before = peak()
status = cli.main(["quantize", *sys.argv[1:], "--no_check"])
print(status, before, peak())
"""
WIDE = {"hidden_size": 512, "moe_intermediate_size": 512, "intermediate_size": 2048, "n_routed_experts": 16}


@pytest.mark.parametrize("method", ["w8a16", "w4a16"])
def test_peak_does_not_grow_with_the_layers(root: Path, tmp_path: Path, method: str) -> None:
    grown, peaks, sizes = {}, {}, {}
    for layers in (4, 8):
        source, out = tmp_path / f"source{layers}", tmp_path / f"out{layers}"
        tensors = tiny.write_checkpoint(source, num_hidden_layers=layers, **WIDE)
        sizes[layers] = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        command = [sys.executable, "-c", PROGRAM, str(source), str(out), "--to", method]
        ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
        status, before, peaks[layers] = map(int, ran.stdout.split())
        assert status == 0, ran.stderr
        grown[layers] = peaks[layers] - before
    assert sizes[4] > 80e6 and sizes[8] > 1.9 * sizes[4]
    assert peaks[8] == pytest.approx(peaks[4], rel=0.05), (peaks, sizes)
    print(peaks, grown)
    assert max(grown.values()) < 48 << 20, "a matrix of 2 MB, its integers, bands, and what the first use loads"
