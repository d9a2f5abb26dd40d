"""What tells one checkpoint folder from another, without reading the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeltest.accuracy.data import sha256

WEIGHTS = ("*.safetensors", "*.bin")
SMALL = ("*.json", "*.jinja", "*.model", "*.txt")  # the config, the index, the tokenizer


def identity(folder: Path, *, dummy: bool) -> dict[str, Any]:
    """Checksums of the small files, sizes and times of change (ns) of the weights, which a dummy run does not read."""
    small = sorted({path for pattern in SMALL for path in folder.glob(pattern) if path.is_file()})
    large = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern) if path.is_file() and not dummy})
    stats = {path.name: path.stat() for path in large}
    return {
        **{path.name: sha256(path) for path in small},
        **{name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
