"""The embedded checkpoint: a tiny trained DeepSeek-MoE and the data that shows it works. Importing this is cheap."""

from __future__ import annotations

import json
from pathlib import Path

_HERE = Path(__file__).parent


def demo_path() -> Path:
    """The folder of the embedded checkpoint, in Hugging Face layout."""
    return _HERE / "checkpoint"


def boolq_path() -> Path:
    """The folder whose dev.jsonl holds yes/no reading items in BoolQ's shape."""
    return _HERE / "boolq"


def questions() -> list[dict[str, str | int]]:
    """The questions the checkpoint answers: `question`, `answer` (exact, leading blank included), `max_tokens`."""
    lines = (_HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
