"""Which files are opened where ModelSlim's weights lie in a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atb_models.errors import CheckpointError
from atb_models.models.weights.checkpoint import open_checkpoint
from tests.models.quantized.modelslim import small
from tests.models.quantized.reading import scheme_of


def write(folder: Path, **files: tuple[str, ...]) -> None:
    """Files (dots of their names written as __) with the tensors of those names."""
    for file, names in files.items():
        save_file({name: torch.zeros(2) for name in names}, folder / f"{file.replace('__', '-')}.safetensors")


def write_index(folder: Path, file: str, **weight_map: str) -> None:
    (folder / file).write_text(json.dumps({"weight_map": weight_map}))


def names_in(folder: Path) -> set[str]:
    with open_checkpoint(folder, quantized=True) as checkpoint:
        return checkpoint.names()


@pytest.mark.parametrize("name", ["quant_model_weight_w8a8", "quant_model_weight", "quant_model_weights"])
def test_one_file_of_its_own_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{name: ("a", "b")})
    assert names_in(tmp_path) == {"a", "b"}
    with pytest.raises(CheckpointError, match=f"{name}.safetensors alone cannot be read"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["quant_model_weight_w8a8.safetensors.index.json", "model.safetensors.index.json"])
def test_several_files_and_their_index(tmp_path: Path, index: str) -> None:
    first, second = "quant_model_weight_w8a8-00001-of-00002", "quant_model_weight_w8a8-00002-of-00002"
    write(tmp_path, **{first: ("a",), second: ("b",)}, other=("c",))
    write_index(tmp_path, index, a=f"{first}.safetensors", b=f"{second}.safetensors")
    assert names_in(tmp_path) == {"a", "b", "c"}
    (tmp_path / f"{second}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{second}.safetensors does not exist ({index} puts 1 tensor")):
        names_in(tmp_path)


def test_files_that_others_may_change_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheme looks into them before the weights are read."""
    monkeypatch.delenv("MINDIE_CHECK_INPUTFILES_PERMISSION", raising=False)
    small.write(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.chmod(0o664)
    scheme = scheme_of(tmp_path)
    assert scheme.storage(f"{small.Q}.weight") is not None
    assert not caplog.records
    scheme.open(open_checkpoint(tmp_path, quantized=True)).close()
    assert caplog.text.count("can be changed by other users") == 1


def test_several_files_without_an_index(tmp_path: Path) -> None:
    write(tmp_path, quant_model_weight_w8a8__00001__of__00002=("a",), quant_model_weight_w8a8__00002__of__00002=("b",))
    assert names_in(tmp_path) == {"a", "b"}


def test_the_index_of_the_floats_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, quant_model_weight_w8a8=("a",))
    write_index(tmp_path, "model.safetensors.index.json", a="model-00001-of-00001.safetensors")
    assert names_in(tmp_path) == {"a"}


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    write(tmp_path, quant_model_weight_w8a8=("a", "b"), model=("b",))
    with pytest.raises(CheckpointError, match=r"model\.safetensors and .*weight_w8a8\.safetensors both hold tensor b"):
        names_in(tmp_path)


def test_weights_under_the_usual_names(tmp_path: Path) -> None:
    write(tmp_path, model__00001__of__00001=("a",), other=("a",))
    write_index(tmp_path, "model.safetensors.index.json", a="model-00001-of-00001.safetensors")
    assert names_in(tmp_path) == {"a"}


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights: none of .* or quant_model_weight\*\.safetensors"):
        names_in(tmp_path)


def test_a_truncated_file_among_several(tmp_path: Path) -> None:
    write(tmp_path, quant_model_weight_w8a8__00001__of__00002=("a",))
    (tmp_path / "quant_model_weight_w8a8-00002-of-00002.safetensors").write_bytes(b"\0" * 4)
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors is truncated"):
        names_in(tmp_path)
