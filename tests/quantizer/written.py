"""What `atb-models quantize` has written, read with the format's own library; and the tables that it must fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import cli

FAMILIES = ("deepseek", "qwen", "xverse")


def quantize(source: Path, target: Path, *words: str, check: bool = False) -> int:
    """The exit status of the command in this process; without its check unless that is asked for."""
    return cli.main(["quantize", str(source), str(target), *words, *(() if check else ("--no_check",))])


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors, each in the file that the index names, and in no other."""
    index = folder / "model.safetensors.index.json"
    held = {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    found = {name: tensor for file in held.values() for name, tensor in file.items()}
    assert len(found) == sum(len(file) for file in held.values()), "a tensor lies in two files"
    if index.exists():
        content = json.loads(index.read_text())
        assert content["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
        assert content["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in found.values())
    return found


def config_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def is_linear(name: str) -> bool:
    """Whether a checkpoint of floats has a weight that is quantised under this name."""
    return name.endswith("_proj.weight")


def source_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def signature(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def grouped_integers(weight_OI: Tensor, group: int) -> tuple[np.ndarray, np.ndarray]:
    """int4 in int8 [O, I] and float32 [O, groups]: the largest magnitude of a group / 7.5, halves to even, -8 to 7."""
    rows = weight_OI.float().numpy()
    integers, scales = np.empty(rows.shape, np.int8), []
    for start in range(0, rows.shape[1], group):
        part = rows[:, start : start + group]
        scale = np.abs(part).max(axis=1, keepdims=True) / np.float32(7.5)
        scale[scale == 0] = 1
        integers[:, start : start + group] = np.rint(part / scale).clip(-8, 7)
        scales.append(scale)
    return integers, np.concatenate(scales, axis=1)


def low_and_high(packed: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The signed numbers in the bits 0 to 3 and 4 to 7 of each byte."""
    values = packed.numpy().view(np.uint8).astype(np.int16)
    low, high = values & 15, values >> 4
    return tuple(np.where(part > 7, part - 16, part).astype(np.int8) for part in (low, high))  # type: ignore[return-value]
