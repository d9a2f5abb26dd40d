"""The script that made the embedded checkpoint: its forward pass is the engine's, and it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atb_models import LLM
from atb_models.demo import demo_path
from tools.demo.evaluate import load


def test_its_forward_pass_is_the_engines() -> None:
    model, tokenizer = load(demo_path())
    ids = tokenizer.encode("User: Who is the CEO of Google?\n\nAssistant: Sundar Pichai").ids
    with LLM(dtype="fp32", device="cpu") as llm, torch.inference_mode():
        assert (llm.prompt_logits(ids) - model.logits(ids)).abs().max() <= 2e-4


@pytest.mark.full
def test_two_steps_of_training(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.demo.train", "--steps", "2", "--rows", "2", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=root)
    assert ended.returncode == 0, ended.stderr
    for name in ("questions.jsonl", "boolq/dev.jsonl", "checkpoint/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (demo_path().parent / name).read_bytes(), name
