"""The embedded checkpoint: a tiny trained DeepSeek-MoE and the data that shows it works. Importing this is cheap."""

from __future__ import annotations

from pathlib import Path

from atb_models.files import read_text
from atb_models.json_file import json_lines

_HERE = Path(__file__).parent


def demo_path() -> Path:
    """The folder of the embedded checkpoint, in Hugging Face layout."""
    return _HERE / "checkpoint"


def boolq_path() -> Path:
    """The folder whose dev.jsonl holds yes/no reading items in BoolQ's shape."""
    return _HERE / "boolq"


def questions() -> list[dict[str, str | int]]:
    """The questions the checkpoint answers: `question`, `answer` (exact, leading blank included), `max_tokens`."""
    path = _HERE / "questions.jsonl"
    return [row for _, row in json_lines(read_text(path), str(path))]
