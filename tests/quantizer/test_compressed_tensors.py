"""The files of compressed-tensors: names, types, shapes, the settings in config.json, and the numbers unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from tests.quantized import integers_and_scales
from tests.quantizer.written import (
    FAMILIES,
    config_of,
    grouped_integers,
    is_linear,
    quantize,
    signature,
    source_tensors,
    tensors_of,
)

CHANNEL = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, "dynamic": False}
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True}
# Linear modules of the published code that stay floats, in the order of a layer's tensors.
FLOATS = {"deepseek": ["gate"], "qwen": ["gate", "shared_expert_gate"], "xverse": ["router"]}


def unpacked(words: Tensor, bits: int, inputs: int) -> np.ndarray:
    """The integers of int32 words by the library's rule: value i of a word in bits from i * bits on, less the zero."""
    unsigned = words.numpy().view(np.uint32)
    places = np.arange(32 // bits, dtype=np.uint32) * bits
    values = (unsigned[:, :, None] >> places) & ((1 << bits) - 1)
    return (values.reshape(len(unsigned), -1)[:, :inputs].astype(np.int64) - (1 << (bits - 1))).astype(np.int8)


def settings(method: str, floats: list[str]) -> dict[str, Any]:
    is_int8 = method == "w8a8_dynamic"
    group = {"targets": ["Linear"], "weights": CHANNEL, "input_activations": TOKEN if is_int8 else None}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if is_int8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | {"output_activations": None}},
        "ignore": floats,
        "kv_cache_scheme": None,
    }


@pytest.mark.parametrize("method", ["w8a16", "w8a8_dynamic"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_types_shapes_settings_and_numbers(shared: Path, tmp_path: Path, family: str, method: str) -> None:
    folder = shared / "golden" / family
    assert quantize(folder, tmp_path / "out", "--to", method, "--format", "compressed-tensors") == 0
    source, written = source_tensors(folder), tensors_of(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    expected: dict[str, Any] = {}
    for name, tensor in source.items():
        if not is_linear(name):
            expected[name] = tensor.dtype, tuple(tensor.shape)
            assert torch.equal(written[name], tensor)
            continue
        outputs, inputs = tensor.shape
        integers, scales = integers_and_scales(tensor)
        expected[f"{name}_scale"] = torch.float32, (outputs, 1)
        assert np.array_equal(written[f"{name}_scale"].numpy()[:, 0], scales)
        if method == "w8a8_dynamic":
            expected[name] = torch.int8, (outputs, inputs)
            assert np.array_equal(written[name].numpy(), integers)
            continue
        expected[f"{name}_packed"] = torch.int32, (outputs, -(-inputs // 4))
        expected[f"{name}_shape"] = torch.int64, (2,)
        assert written[f"{name}_shape"].tolist() == [outputs, inputs]
        assert np.array_equal(unpacked(written[f"{name}_packed"], 8, inputs), integers)
    assert signature(written) == expected
    layers = range(config_of(folder)["num_hidden_layers"])
    routed = [f"model.layers.{i}.mlp.{name}" for i in layers for name in FLOATS[family]]
    floats = [path for path in routed if f"{path}.weight" in source]
    config = config_of(folder) | {"quantization_config": settings(method, [*floats, "lm_head"])}
    assert config_of(tmp_path / "out") == config


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits(shared: Path, tmp_path: Path, family: str, group: int) -> None:
    folder = shared / "golden" / family
    words = ("--to", "w4a16", "--format", "compressed-tensors", "--group_size", str(group))
    assert quantize(folder, tmp_path / "out", *words) == 0
    source, written = source_tensors(folder), tensors_of(tmp_path / "out")
    for name, tensor in source.items():
        if not is_linear(name):
            continue
        outputs, inputs = tensor.shape
        integers, scales = grouped_integers(tensor, inputs if group == -1 else group)
        assert name not in written and written[f"{name}_shape"].tolist() == [outputs, inputs]
        assert np.array_equal(written[f"{name}_scale"].numpy(), scales), name
        packed = written[f"{name}_packed"]
        assert packed.dtype == torch.int32 and packed.shape == (outputs, -(-inputs // 8))
        assert np.array_equal(unpacked(packed, 4, inputs), integers)
    weights = config_of(tmp_path / "out")["quantization_config"]["config_groups"]["group_0"]["weights"]
    strategy = ("channel", None) if group == -1 else ("group", group)
    assert weights == CHANNEL | {"num_bits": 4, "strategy": strategy[0], "group_size": strategy[1]}


def test_maps_that_stay_floats_are_in_the_ignore_list(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "source")
    words = ("--to", "w8a8_dynamic", "--format", "compressed-tensors", "--float", "*.layers.0.mlp.*")
    assert quantize(tmp_path / "source", tmp_path / "out", *words) == 0
    ignored = config_of(tmp_path / "out")["quantization_config"]["ignore"]
    paths = [name.removesuffix(".weight") for name in source if is_linear(name) and ".layers.0.mlp." in name]
    assert sorted(ignored) == sorted([*paths, "model.layers.1.mlp.gate", "model.layers.2.mlp.gate", "lm_head"])
    written = tensors_of(tmp_path / "out")
    assert all(torch.equal(written[f"{path}.weight"], source[f"{path}.weight"]) for path in paths)


def test_inputs_that_fill_no_whole_word(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "source", moe_intermediate_size=33)
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16", "--format", "compressed-tensors") == 0
    written = tensors_of(tmp_path / "out")
    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    assert written[f"{name}_packed"].shape == (64, 9)
    assert np.array_equal(unpacked(written[f"{name}_packed"], 8, 33), integers_and_scales(source[name])[0])


def test_several_files_have_an_index(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "source")
    words = ("--to", "w8a16", "--format", "compressed-tensors", "--max_shard_size", "0.1MB")
    assert quantize(tmp_path / "source", tmp_path / "out", *words) == 0
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 1 and (tmp_path / "out" / "model.safetensors.index.json").exists()
    tensors_of(tmp_path / "out")
