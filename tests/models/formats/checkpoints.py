"""Checkpoints of a quantised format made from floats, and how they are read back through a scheme."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atb_models.models.quantized.scheme import Scheme
from atb_models.models.weights.source import WeightSource
from tests.models.formats.packing import Packed
from tests.models.quantized.reading import floats_of, opened, read

Pack = Callable[[str, Tensor], Packed | None]

CUTS = ((None, 0, 0), (0, 0, 24), (0, 5, 31), (1, 0, 40), (1, 24, 64), (1, 3, 61), (1, 17, 17))


def is_linear(name: str) -> bool:
    """q, k, v, o, gate, up and down, of shared and routed experts."""
    return name.endswith("_proj.weight")


def quantized_copy(
    source: Path, folder: Path, declared: dict[str, Any] | None, pack: Callable[[Tensor], Packed], **more: Pack
) -> dict[str, Tensor]:
    """Write the checkpoint in `source` to `folder` with packed linear maps -> the floats that it stands for, by name.

    declared: its quantization_config. more: tensors by name (dots as __) that are packed otherwise or (None) not.
    """
    others = {name.replace("__", "."): function for name, function in more.items()}
    tensors, expected = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        function = others.get(name)
        packed = function(name, tensor) if function else pack(tensor) if is_linear(name) else None
        if packed is None:
            tensors[name] = expected[name] = tensor
            continue
        stem = name.removesuffix(".weight")
        tensors |= {f"{stem}.{part}": value for part, value in packed[0].items()}
        expected[name] = packed[1]
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    if declared is not None:
        config["quantization_config"] = declared
    (folder / "config.json").write_text(json.dumps(config))
    return expected


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def check(folder: Path, expected: dict[str, Tensor]) -> Scheme:
    """The whole checkpoint, and any slice of it, is read to what it stands for, to the last bit."""
    with opened(folder) as (scheme, source):
        own = {
            f"{name}{end}"
            for name in expected
            if (storage := scheme.storage(name))
            for end in (("_scale", "_offset") if storage.offset else ("_scale",))
        }
        assert source.names() - getattr(source, "spare", set)() == expected.keys() | own
        for name, tensor in expected.items():
            assert source.where(name) == str(folder / "model.safetensors")
            assert source.shape(name) == tuple(tensor.shape)
            assert torch.equal(floats_of(scheme, source, name), tensor.float()), name
            parts = [name, *(part for part in (f"{name}_scale", f"{name}_offset") if part in own)]
            for part in parts if _is_cut(name) else ():
                integers = part == name and scheme.storage(name) is not None
                _check_cuts(source, part, torch.int8 if integers else torch.float32)
    return scheme


def _is_cut(name: str) -> bool:
    """One of each kind is enough."""
    return ".layers." not in name or (".layers.1." in name and (".experts." not in name or ".experts.0." in name))


def _check_cuts(source: WeightSource, name: str, dtype: torch.dtype) -> None:
    whole = read(source, name, dtype)
    for dim, start, stop in CUTS:
        if dim is not None and (dim >= whole.dim() or stop > whole.shape[dim]):
            continue
        part = whole if dim is None else whole.narrow(dim, start, stop - start)
        assert torch.equal(read(source, name, whole.dtype, dim, start, stop), part), (name, dim, start, stop)


def golden(shared: Path, name: str) -> Path:
    folder = shared / "golden" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return folder
