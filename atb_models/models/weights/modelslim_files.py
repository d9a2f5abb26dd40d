"""Which files of a folder hold the weights that ModelSlim wrote: their names begin with its own word."""

from __future__ import annotations

from pathlib import Path

from atb_models.models.weights.index import indexed_files, listed_files

STEM = "quant_model_weight"


def modelslim_files(folder: Path) -> tuple[dict[Path, set[str] | None], Path] | None:
    """(file -> the tensors that an index puts there, None: all of it; the index, or the folder); None: none of its own.

    All *.safetensors of the folder, as MindIE takes them, and those that an index lists beside them. A copied index of
    the floats that the weights were made of lists none of ModelSlim's names, and does not count. Raises CheckpointError
    when a file is missing that an index lists.
    """
    indices = [*sorted(folder.glob(f"{STEM}*.index.json")), *folder.glob("model.safetensors.index.json")]
    own = [index for index in indices if any(name.startswith(STEM) for name in listed_files(index))]
    if not own and not any(folder.glob(f"{STEM}*.safetensors")):
        return None
    files: dict[Path, set[str] | None] = dict.fromkeys(folder.glob("*.safetensors"))
    for index in own:
        files.update(indexed_files(folder, index))
    return files, own[0] if own else folder
