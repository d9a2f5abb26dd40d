"""ModelSlim's files: every tensor's name, type and shape, its description, and the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from tests.quantized import integers_and_scales
from tests.quantizer.written import (
    FAMILIES,
    config_of,
    grouped_integers,
    is_linear,
    low_and_high,
    quantize,
    signature,
    source_tensors,
    tensors_of,
)

KINDS = {"w8a16": "W8A16", "w8a8_dynamic": "W8A8_DYNAMIC"}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_names_types_shapes_and_numbers_of_int8(shared: Path, tmp_path: Path, family: str, method: str) -> None:
    folder = shared / "golden" / family
    assert quantize(folder, tmp_path / "out", "--to", method) == 0
    source, written = source_tensors(folder), tensors_of(tmp_path / "out")
    expected = {}
    for name, tensor in source.items():
        if is_linear(name):
            outputs, inputs = tensor.shape
            expected[name] = torch.int8, (outputs, inputs)
            expected[f"{name}_scale"] = torch.float32, (outputs, 1)
            expected[f"{name}_offset"] = torch.float32, (outputs, 1)
        else:
            expected[name] = tensor.dtype, tuple(tensor.shape)
    assert signature(written) == expected
    for name, tensor in source.items():
        if not is_linear(name):
            assert torch.equal(written[name], tensor), name
            continue
        integers, scales = integers_and_scales(tensor)
        assert np.array_equal(written[name].numpy(), integers), name
        assert np.array_equal(written[f"{name}_scale"].numpy()[:, 0], scales), name
        assert not written[f"{name}_offset"].any()
    description = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    quantized = {end for name in source if is_linear(name) for end in (name, f"{name}_scale", f"{name}_offset")}
    assert description == {"model_quant_type": KINDS[method], "version": "1.0.0", "group_size": 0} | {
        name: KINDS[method] if name in quantized else "FLOAT" for name in written
    }
    assert config_of(tmp_path / "out") == config_of(folder) | {"quantize": method}


@pytest.mark.parametrize("group", [64, 32, 128, -1])
@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits(shared: Path, tmp_path: Path, family: str, group: int) -> None:
    """Two outputs in a byte where inputs are grouped, two inputs where whole rows share a scale."""
    folder = shared / "golden" / family
    words = ("--to", "w4a16", *(() if group == 128 else ("--group_size", str(group))))
    assert quantize(folder, tmp_path / "out", *words) == 0
    source, written = source_tensors(folder), tensors_of(tmp_path / "out")
    for name, tensor in source.items():
        if not is_linear(name):
            assert torch.equal(written[name], tensor)
            continue
        outputs, inputs = tensor.shape
        integers, scales = grouped_integers(tensor, inputs if group == -1 else group)
        assert np.array_equal(written[f"{name}_scale"].numpy(), scales), name
        assert not written[f"{name}_offset"].any() and written[f"{name}_offset"].shape == scales.shape
        low, high = low_and_high(written[name])
        if group == -1:
            assert low.shape == (outputs, inputs // 2)
            assert np.array_equal(low, integers[:, 0::2]) and np.array_equal(high, integers[:, 1::2])
        else:
            assert low.shape == (outputs // 2, inputs)
            assert np.array_equal(low, integers[0::2]) and np.array_equal(high, integers[1::2])
    size = max(group, 0)
    description = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    assert (description["model_quant_type"], description["group_size"]) == ("W4A16", size)
    kinds = {name: "W4A16" if is_linear(name) or name.endswith(("_scale", "_offset")) else "FLOAT" for name in written}
    assert {name: description[name] for name in written} == kinds and len(description) == len(written) + 3
    config = config_of(tmp_path / "out")
    assert config["quantize"] == "w4a16"
    assert config.get("quantization_config") == ({"group_size": size} if size else None)


def test_a_last_group_that_is_smaller_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_checkpoint(tmp_path / "source", moe_intermediate_size=96)
    assert quantize(tmp_path / "source", tmp_path / "even", "--to", "w4a16", "--group_size", "32") == 0
    assert "smaller" not in capsys.readouterr().err
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w4a16", "--group_size", "64") == 0
    said = capsys.readouterr().err
    assert "is smaller than 64: other engines may refuse that; --group_size 32 fits all" in said
    scales = tensors_of(tmp_path / "out")["model.layers.1.mlp.experts.0.down_proj.weight_scale"]
    assert scales.shape == (64, 2)


@pytest.mark.parametrize(("words", "what"), [((), "33 outputs"), (("--group_size", "-1"), "33 inputs")])
def test_an_odd_number_cannot_be_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], what: str
) -> None:
    tiny.write_checkpoint(tmp_path / "source", moe_intermediate_size=33)
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w4a16", *words) == 2
    said = capsys.readouterr().err
    assert f"has {what}, but this format packs four bits of two of them into a byte" in said
    assert not (tmp_path / "out").exists()


def test_files_beside_the_weights(tmp_path: Path) -> None:
    """Those of the tokenizer and others are copied; weights of any kind, indexes and hidden files are not."""
    source = tmp_path / "source"
    tiny.write_checkpoint(source)
    (source / "tokenizer.json").write_text('{"a": "ü"}')
    (source / "modeling_x.py").write_text("raise SystemExit\n")
    for name in ("training_args.bin", "model.gguf", "other.safetensors", "pytorch_model.bin.index.json", ".gitkeep"):
        (source / name).write_text("x")
    (source / "figures").mkdir()
    assert quantize(source, tmp_path / "out", "--to", "w8a16") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors.index.json",
        "modeling_x.py",
        "quant_model_description.json",
        "quant_model_weights-00001-of-00001.safetensors",
        "tokenizer.json",
    ]
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"a": "ü"}'


@pytest.mark.parametrize("layout", ["sharded", "bin"])
def test_source_in_other_files(tmp_path: Path, layout: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "source", layout=layout)
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16") == 0
    written = tensors_of(tmp_path / "out")
    assert {name.removesuffix("_scale").removesuffix("_offset") for name in written} == set(tensors)


def test_files_are_as_large_as_asked(tmp_path: Path) -> None:
    """A linear map lies in one file with its scales; only a tensor that is larger by itself makes a larger file."""
    tiny.write_checkpoint(tmp_path / "source", vocab_size=2048)
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16", "--max_shard_size", "0.02MB") == 0
    written = tensors_of(tmp_path / "out")
    files = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    count = len(set(files.values()))
    assert count > 5 and set(files.values()) == {
        f"quant_model_weights-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)
    }
    sizes: dict[str, list[int]] = {}
    for name, tensor in written.items():
        sizes.setdefault(files[name], []).append(tensor.numel() * tensor.element_size())
        if name.endswith("_scale"):
            assert files[name] == files[name.removesuffix("_scale")] == files[name.replace("_scale", "_offset")]
    assert all(sum(one) <= 20_000 or len(one) == 1 for one in sizes.values())
    assert sum(len(one) == 1 and one[0] > 20_000 for one in sizes.values()) == 2, "embedding and head"


def test_torch_dtype_is_written_where_it_was_missing(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "source", torch_dtype=None)
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16") == 0
    dtype = tensors_of(tmp_path / "out")["model.norm.weight"].dtype
    assert config_of(tmp_path / "out")["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_maps_that_stay_floats(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "source")
    kept = ["--float", "*.layers.0.*", "--float", "*.self_attn.o_proj"]
    assert quantize(tmp_path / "source", tmp_path / "out", "--to", "w8a16", *kept) == 0
    written = tensors_of(tmp_path / "out")
    description = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    for name, tensor in source.items():
        floats = not is_linear(name) or ".layers.0." in name or "o_proj" in name
        assert description[name] == ("FLOAT" if floats else "W8A16"), name
        assert (f"{name}_scale" in written) is not floats
        assert not floats or torch.equal(written[name], tensor)
