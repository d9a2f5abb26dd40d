"""The index of a checkpoint in pieces: which file holds which tensor, and what is said of one that is damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atb_models.errors import CheckpointError
from atb_models.models.weights.checkpoint import open_checkpoint


def some_tensors() -> dict[str, Tensor]:
    return {name: torch.zeros(2, 3) for name in ("matrix", "vector", "scalar", "empty", "cube", "last")}


@pytest.mark.parametrize("layout", ["sharded", "bin-sharded"])
def test_missing_file_of_an_index(tmp_path: Path, layout: str) -> None:
    tiny.write_weights(tmp_path, some_tensors(), layout)
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(CheckpointError, match=r"-00002-of-00003\.\w+ does not exist .*puts 2 tensors into it.* cube"):
        open_checkpoint(tmp_path)


def test_tensor_of_the_index_that_its_file_lacks(tmp_path: Path) -> None:
    tiny.write_weights(tmp_path, some_tensors(), "sharded")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00002-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json puts ghost into .*model-00002-of-00003\.safetensors, but"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("total", "said"), [("-1", "-1"), ('"12"', "'12'"), ("1e400", "inf"), ("0.5", "0.5"), ("true", "True")]
)
def test_total_size_is_a_number_of_bytes(tmp_path: Path, total: str, said: str) -> None:
    text = '{"weight_map": {"a": "a.safetensors"}, "metadata": {"total_size": ' + total + "}}"
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"index\.json: metadata\.total_size is {re.escape(said)}, but must be"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"model\.safetensors\.index\.json is not valid JSON"),
        ("{}", r"model\.safetensors\.index\.json has no weight_map"),
        ('{"weight_map": {}}', r"model\.safetensors\.index\.json has no weight_map .*: {}"),
        ('{"weight_map": ["a"]}', r"model\.safetensors\.index\.json has no weight_map .*: \['a'\]"),
        ('{"weight_map": {"a": 1}}', r"index\.json: weight_map puts a into 1, which is no file name"),
        ('{"weight_map": {"a": "x\\u0000.safetensors"}}', r"puts a into 'x\\x00\.safetensors', which is no file name"),
        ('{"weight_map": {"a": "' + "x" * 300 + '"}}', r"puts a into 'x{119}\.\.\. \(302 cha.*no file name"),
        ('{"weight_map": {"a": ".."}}', r"\.\. does not exist"),
        ('{"weight_map": {"a": "../a.safetensors"}}', r"puts a into '\.\./a\.safetensors', which is no file name"),
    ],
)
def test_unreadable_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_a_long_index_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors.index.json").open("wb") as stream:
        stream.truncate(200_000_000)
    with pytest.raises(CheckpointError, match=r"index\.json has 200000000 bytes, but at most 25165824 are read"):
        open_checkpoint(tmp_path)


def test_a_tensor_of_two_files(tmp_path: Path) -> None:
    """The index says which counts; what it does not list must not be ambiguous."""
    tiny.write_weights(tmp_path, some_tensors(), "sharded")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    for file, value in ((first, 1.0), (second, 2.0)):
        save_file({**load_file(file), "both": torch.full((2,), value)}, file)
    with pytest.raises(CheckpointError, match=r"index\.json does not list tensor both, which .*00001-.*00002-.* both"):
        open_checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for file, value in ((first, 1.0), (second, 2.0)):
        content["weight_map"]["both"] = file.name
        index.write_text(json.dumps(content))
        with open_checkpoint(tmp_path) as checkpoint:
            assert checkpoint.read("both")[0] == value
