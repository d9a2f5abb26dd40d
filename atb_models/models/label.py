"""What reports call a model."""

from __future__ import annotations

import os
from pathlib import Path

from atb_models.demo import demo_path


def model_label(folder: Path | str) -> str:
    """The last part of a checkpoint folder's path; "embedded checkpoint" for ours."""
    path = os.path.abspath(folder)
    return "embedded checkpoint" if path == os.path.abspath(demo_path()) else os.path.basename(path) or path
