"""From one format to another: integers and scales are written as they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from tests.models.formats.checkpoints import quantized_copy
from tests.models.formats.packing import gptq
from tests.quantizer.written import config_of, is_linear, low_and_high, quantize, tensors_of

METHODS = [("w8a16",), ("w8a8_dynamic",), ("w4a16", "--group_size", "32"), ("w4a16", "--group_size", "-1")]
TO_COMPRESSED = ("--format", "compressed-tensors")


@pytest.mark.parametrize("words", METHODS, ids=" ".join)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_there_and_back(shared: Path, tmp_path: Path, family: str, words: tuple[str, ...]) -> None:
    to = ("--to", words[0])
    first, second, third = (tmp_path / name for name in ("modelslim", "compressed", "again"))
    assert quantize(shared / "golden" / family, first, *to, *words[1:]) == 0
    assert quantize(first, second, *to, *TO_COMPRESSED) == 0
    assert quantize(second, third, *to) == 0
    before, after = tensors_of(first), tensors_of(third)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    for file in ("quant_model_description.json", "model.safetensors.index.json"):
        assert (first / file).read_bytes() == (third / file).read_bytes()
    assert config_of(first) == config_of(third)
    assert "quantize" not in config_of(second)
    direct = tmp_path / "direct"
    assert quantize(shared / "golden" / family, direct, *to, *words[1:], *TO_COMPRESSED) == 0
    expected = tensors_of(direct)
    assert expected.keys() == tensors_of(second).keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(second).items())
    assert config_of(direct) == config_of(second)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_becomes_modelslim(shared: Path, tmp_path: Path, symmetric: bool) -> None:
    """With its zero points as offsets; the weights that it stands for stay the same to the last bit."""
    declared = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": symmetric, "desc_act": False}
    source, out = tmp_path / "gptq", tmp_path / "out"
    source.mkdir()
    pack = partial(gptq, bits=4, group=32, symmetric=symmetric)
    expected = quantized_copy(shared / "golden" / "deepseek", source, declared, pack)
    assert quantize(source, out, "--to", "w4a16") == 0
    written = tensors_of(out)
    for name, floats in expected.items():
        if not is_linear(name):
            assert torch.equal(written[name], floats)
            continue
        integers = np.empty(tuple(floats.shape), np.float32)
        integers[0::2], integers[1::2] = low_and_high(written[name])
        scale, offset = (written[f"{name}_{end}"].numpy().repeat(32, 1) for end in ("scale", "offset"))
        assert np.array_equal((integers - offset) * scale, floats.float().numpy()), name
    assert config_of(out)["quantize"] == "w4a16"


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    tiny.write_checkpoint(tmp_path / "source", family="qwen")
    assert quantize(tmp_path / "source", tmp_path / "w4a16", "--to", "w4a16", "--group_size", "32") == 0
    return tmp_path / "w4a16"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "w8a16"), "but --to w8a16 needs the checkpoint of floats that it was made of"),
        (("--to", "w8a8"), "--to w4a16 writes it in another format"),
        (("--to", "w4a16", "--group_size", "64"), "--group_size 64 is for a checkpoint of floats"),
        (("--to", "w4a16", "--float", "*.o_proj"), "--float is for a checkpoint of floats"),
    ],
)
def test_integers_are_never_rounded_again(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert quantize(quantized, tmp_path / "out", *words, *TO_COMPRESSED) == 2
    said = capsys.readouterr().err
    assert "quantised already, as ModelSlim, w4a16" in said and message in said
    assert not (tmp_path / "out").exists()


def test_the_same_group_size_may_be_said(quantized: Path, tmp_path: Path) -> None:
    assert quantize(quantized, tmp_path / "out", "--to", "w4a16", "--group_size", "32", *TO_COMPRESSED) == 0


def test_offsets_have_no_place_in_compressed_tensors(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = quantized.glob("*.safetensors")
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("weight_offset"):
            tensor += 1
    save_file(tensors, path)
    assert quantize(quantized, tmp_path / "out", "--to", "w4a16", *TO_COMPRESSED) == 2
    assert "but the weights of this checkpoint have offsets too" in capsys.readouterr().err
    assert quantize(quantized, tmp_path / "same", "--to", "w4a16") == 0
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in tensors_of(tmp_path / "same").items())
