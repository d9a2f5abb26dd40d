"""The index of a checkpoint in several files: which file holds which tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atb_models.errors import CheckpointError
from atb_models.json_file import check_present, check_size, read_json
from atb_models.wording import named, shown

# Two hundred thousand tensors; a parsed index may take some forty times its size.
MOST_INDEX_BYTES = 24 << 20
MOST_NAME_BYTES = 255


def indexed_files(folder: Path, index: Path) -> dict[Path, set[str] | None]:
    """File -> the tensors that the index puts there; CheckpointError when a file is missing."""
    files: dict[Path, set[str] | None] = {}
    for name, file in _weight_map(index).items():
        tensors = files.setdefault(folder / file, set())
        assert tensors is not None
        tensors.add(name)
    for path, tensors in sorted(files.items()):
        first = named(sorted(tensors or ())[:1])
        check_present(path, f"{index.name} puts {len(tensors or ())} tensors into it, the first {first}")
    return files


def listed_files(index: Path) -> set[str]:
    """The names of the files that the index puts tensors into."""
    return set(_weight_map(index).values())


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> name of its file."""
    check_size(index, MOST_INDEX_BYTES)
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names: {shown(weight_map)}")
    _check_total_size(content.get("metadata"), index)
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_file_name(file):
            where = f"{index}: weight_map puts {named([name])} into {shown(file)}"
            raise CheckpointError(f"{where}, which is no file name of its own folder")
    return weight_map


def _is_file_name(text: str) -> bool:
    """Whether it names a file of its own folder: no path, nothing unprintable, not longer than Linux allows."""
    return Path(text).name == text and text.isprintable() and len(text.encode()) <= MOST_NAME_BYTES


def _check_total_size(metadata: Any, index: Path) -> None:
    """metadata.total_size is for those who download; it need not be there, nor right, but it is a number of bytes."""
    total = metadata.get("total_size", 0) if isinstance(metadata, dict) else 0 if metadata is None else metadata
    fits = isinstance(total, (int, float)) and not isinstance(total, bool) and 0 <= total < 1 << 63
    if not fits or int(total) != total:
        raise CheckpointError(f"{index}: metadata.total_size is {shown(total)}, but must be a number of bytes")
