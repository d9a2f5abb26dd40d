"""ModelSlim's files, made of a float checkpoint by the rules of the format, and the floats that they stand for.

Written apart from the reader, in numpy. The rules are those of msmodelslim's savers (ascend_v1 and its predecessor):
integers are signed; a type for each tensor; two 4-bit numbers in a byte, the even one low, from version 1.0.0 on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Array = np.ndarray
BITS = {"W8A8": 8, "W8A8_DYNAMIC": 8, "W8A8_MIX": 8, "W8A16": 8, "W4A16": 4}
INPUT_SCALE, INPUT_OFFSET = 0.0625, 3.0  # of static activations; both are exact in every float type


@dataclass
class Form:
    """One way to write a checkpoint. kind: the type of a linear map's weight, by name; None: it stays a float.

    group: inputs that share a scale, 0: all. deq_scale: float32, int64, or marked (int64 with bit 46).
    """

    quantize: str
    kind: Callable[[str], str | None]
    version: str = "0.0.0"
    group: int = 0
    asymmetric: bool = False
    scale_dtype: torch.dtype = torch.float32
    deq_scale: str = "float32"
    input_dtype: torch.dtype = torch.float32
    column: bool = True  # scales of rows as [n, 1]; else [n]


@dataclass
class Written:
    """tensors: as they are in the files, and their types. floats: the checkpoint that they stand for."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    floats: dict[str, Tensor] = field(default_factory=dict)

    def add(self, kind: str, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self.tensors[name] = tensor.contiguous()
            self.types[name] = kind


def every(kind: str) -> Callable[[str], str | None]:
    """The same type for all linear maps of the layers but the router and the gate of the shared expert."""
    return lambda name: kind if name.endswith("_proj.weight") else None


def quantized(tensors: dict[str, Tensor], form: Form) -> Written:
    """All tensors of a float checkpoint in that form."""
    written = Written()
    for name, tensor in tensors.items():
        kind = form.kind(name)
        if kind is None:
            written.add("FLOAT", **{name: tensor})
            written.floats[name] = tensor
        else:
            _add_linear(written, name.removesuffix(".weight"), kind, tensors, form)
    return written


def _add_linear(written: Written, stem: str, kind: str, tensors: dict[str, Tensor], form: Form) -> None:
    weight = tensors[f"{stem}.weight"]
    dynamic_only = kind in ("W8A8", "W8A8_MIX", "W8A8_DYNAMIC")
    group = 0 if dynamic_only or form.group >= weight.shape[1] else form.group
    asymmetric = form.asymmetric and kind not in ("W8A8", "W8A8_MIX")
    numbers, scales, offsets = rounded(weight, BITS[kind], group, asymmetric, form.scale_dtype)
    packed = form.version == "1.0.0" and kind == "W4A16"
    stored = pairs(numbers, axis=1 if scales.shape[1] == 1 else 0) if packed else numbers
    written.add(kind, **{f"{stem}.weight": torch.from_numpy(stored)})
    written.floats[f"{stem}.weight"] = torch.from_numpy(dequantized(numbers, scales, offsets, group))
    if kind != "W8A8" or form.version == "0.0.0":  # the newer saver leaves them out
        for part, values in (("scale", scales), ("offset", offsets)):
            column = torch.from_numpy(values) if form.column else torch.from_numpy(values).squeeze(1)
            written.add(kind, **{f"{stem}.weight_{part}": column.to(form.scale_dtype)})
    if kind in ("W8A8", "W8A8_MIX"):
        _add_static(written, stem, kind, numbers, scales, tensors.get(f"{stem}.bias"), form)


def _add_static(
    written: Written, stem: str, kind: str, numbers: Array, scales: Array, bias: Tensor | None, form: Form
) -> None:
    """x8 = x / input_scale + input_offset, and what undoes the offset in the sums lies in quant_bias, with the bias."""
    scale = (np.float32(INPUT_SCALE) * scales[:, 0]).astype(np.float32)
    floats = np.zeros(len(scale), np.float32) if bias is None else bias.float().numpy()
    total = np.rint(floats / scale - numbers.astype(np.float32).sum(axis=1) * np.float32(INPUT_OFFSET))
    words = scale.view(np.int32).astype(np.int64) | (1 << 46 if form.deq_scale == "marked" else 0)
    written.add(
        kind,
        **{
            f"{stem}.deq_scale": torch.from_numpy(scale if form.deq_scale == "float32" else words),
            f"{stem}.quant_bias": torch.from_numpy(total.astype(np.int32)),
            f"{stem}.input_scale": torch.tensor([INPUT_SCALE], dtype=form.input_dtype),
            f"{stem}.input_offset": torch.tensor([INPUT_OFFSET], dtype=form.input_dtype),
        },
    )


def rounded(
    weight: Tensor, bits: int, group: int, asymmetric: bool, scale_dtype: torch.dtype
) -> tuple[Array, Array, Array]:
    """Integers int8 [n, k], scales and offsets float32 [n, groups]: to the nearest."""
    rows = weight.float().numpy()
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    blocks = _blocks(rows, group)
    if asymmetric:
        least, most = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
        scales = _in((most - least) / (high - low), scale_dtype)
        offsets = np.rint(low - least / scales)
    else:
        scales = _in(np.abs(blocks).max(axis=2) / high, scale_dtype)
        offsets = np.zeros_like(scales)
    numbers = np.rint(blocks / scales[:, :, None]) + offsets[:, :, None]
    flat = numbers.clip(low, high).reshape(len(rows), -1)[:, : rows.shape[1]]
    return flat.astype(np.int8), scales, offsets.astype(np.float32)


def dequantized(numbers: Array, scales: Array, offsets: Array, group: int) -> Array:
    """(q - offset) * scale in float32."""
    blocks = _blocks(numbers.astype(np.float32), group)
    values = (blocks - offsets[:, :, None]) * scales[:, :, None]
    return values.reshape(len(numbers), -1)[:, : numbers.shape[1]].copy()


def _blocks(rows: Array, group: int) -> Array:
    """[n, k] -> [n, groups, inputs of a group], the last one filled up with zeros."""
    width = group or rows.shape[1]
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % width))).reshape(len(rows), -1, width)


def _in(scales: Array, dtype: torch.dtype) -> Array:
    rounded_scales: Array = torch.from_numpy(scales.astype(np.float32)).to(dtype).float().numpy()
    return np.where(rounded_scales == 0, np.float32(1), rounded_scales)


def pairs(numbers: Array, axis: int) -> Array:
    """Two 4-bit numbers in a byte: neighbours along `axis`, the even one in the low half."""
    even, odd = (numbers.take(range(first, numbers.shape[axis], 2), axis=axis).astype(np.uint8) for first in (0, 1))
    return ((even & 15) | (odd << 4)).astype(np.uint8).view(np.int8)


def write(folder: Path, golden: Path, form: Form, **config: Any) -> Written:
    """The folder of the golden checkpoint in that form: files, description, config.json with these fields besides."""
    written = quantized(load_file(golden / "model.safetensors"), form)
    save(folder, written, form, {**json.loads((golden / "config.json").read_text()), **config})
    return written


def save(folder: Path, written: Written, form: Form, config: dict[str, Any], **globals_: Any) -> None:
    """Files in the layout of the form's version."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, kinds = f"quant_model_weight_{form.quantize}", set(written.types.values()) - {"FLOAT"}
    described: dict[str, Any] = {"model_quant_type": sorted(kinds)[0] if kinds else "FLOAT", **written.types}
    if form.version == "0.0.0":
        config = {**config, "quantize": form.quantize}
        save_file(written.tensors, folder / f"{stem}.safetensors")
        name = f"quant_model_description_{form.quantize}.json"
        if form.group:
            config["quantization_config"] = {"group_size": form.group}
    else:
        described |= {"version": form.version, "group_size": form.group, "metadata": {}, "optional": {}}
        _save_parts(folder, stem, written.tensors)
        name = "quant_model_description.json"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).write_text(json.dumps({**described, **globals_}))


def _save_parts(folder: Path, stem: str, tensors: dict[str, Tensor]) -> None:
    weight_map = {}
    for part in range(2):
        file = f"{stem}-{part + 1:05d}-of-00002.safetensors"
        own = dict(list(tensors.items())[part::2])
        save_file(own, folder / file)
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
