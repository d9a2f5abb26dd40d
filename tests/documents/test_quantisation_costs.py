"""The memory that docs/models.md gives for each storage of weights, against the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.models.config_reader import load_model_config
from atb_models.plan.memory import Limits, rank_memory

LIMITS = Limits(max_batch_size=1, max_prefill_tokens=16, max_seq_len=64, block_size=16)
MODELS = ("deepseek-moe-16b-base", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b")


@pytest.mark.parametrize("name", ["models.md", "models.zh.md"])
@pytest.mark.parametrize("quantize", [None, "w8a16", "w8a8_dynamic", "w4a16"])
def test_memory_of_weights(root: Path, demo: Path, shared: Path, name: str, quantize: str | None) -> None:
    ops.bind("cpu")
    row = f"| {quantize or 'fp16'}"
    lines = (root / "docs" / name).read_text("utf-8").splitlines()
    (stated,) = (line.split(" | ")[1:5] for line in lines if line.startswith(row) and " MB | " in line)
    folders = (demo, *(shared / "headers" / model for model in MODELS))
    planned = [rank_memory(load_model_config(one), torch.float16, 1, LIMITS, quantize).weights for one in folders]
    assert stated == [f"{planned[0] / 1e6:.2f} MB", *(f"{weights / 1e9:.1f} GB" for weights in planned[1:])]
