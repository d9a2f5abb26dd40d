"""A rank's peak resident memory while loading: its share and little more, file pages included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

ROOT = Path(__file__).resolve().parents[2]

# Reads rank 1 of 4 and prints the bytes of its parameters and by how much VmHWM grew.
PROGRAM = """
import re, sys, torch
from pathlib import Path
from atb_models.layers.build import Build, ParallelGroup
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import build_model
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
config = load_model_config(folder)
torch.ones(100, 100) @ torch.ones(100, 100)
before = peak()
model = build_model(config, Build(dtype, torch.device("cpu"), tensor=ParallelGroup(1, 4)))
source = open_weights(folder, "auto", model, config)
load_weights(model, config, source)
print(sum(p.numel() * p.element_size() for p in model.parameters()), peak() - before)
"""

SMALL = 48 << 20  # two bands of 16 MiB, headers, allocator slack


@pytest.mark.parametrize(("layout", "dtype"), [("single", "float16"), ("bin", "bfloat16")])
def test_peak_stays_near_the_share(tmp_path: Path, layout: str, dtype: str) -> None:
    """About 300 MB in one file. Mapped pages that stay would add about 150 MB."""
    fields: dict[str, Any] = dict(hidden_size=1024, moe_intermediate_size=1024, num_hidden_layers=5, vocab_size=2048)
    config = {**tiny.DEEPSEEK, **fields, "intermediate_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in tiny.shapes_of(config).items()}
    tiny.write_weights(tmp_path, tensors, layout)
    total = sum(tensor.numel() * 2 for tensor in tensors.values())
    largest = max(tensor.numel() * 2 for tensor in tensors.values())
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), dtype]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    share, grown = map(int, run.stdout.split())
    assert total > 300e6 and share < 0.3 * total
    assert 0.9 * share < grown < share + largest + SMALL
