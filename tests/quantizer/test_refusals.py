"""Mistakes: what is said, the exit status, and that nothing is written or deleted."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
import tiny

from atb_models.quantizer import target
from atb_models.quantizer.formats import FORMS
from atb_models.quantizer.main import FORMATS
from tests.quantizer.written import config_of, quantize, tensors_of

TO = ("--to", "w8a16")


def test_every_format_of_the_flag_can_be_written() -> None:
    assert tuple(FORMS) == FORMATS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tiny.write_checkpoint(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--to"),
        (("--to", "w4a8"), "invalid choice: 'w4a8'"),
        ((*TO, "--format", "gguf"), "invalid choice: 'gguf'"),
        ((*TO, "--group_size", "64"), "--group_size is for --to w4a16; w8a16 has a scale for each output"),
        (("--to", "w4a16", "--group_size", "96"), "must be 32, 64, 128, 256 or -1, not '96'"),
        ((*TO, "--max_shard_size", "4"), "must be a size such as 4GB or 500MiB, not '4'"),
        ((*TO, "--max_shard_size", "0GB"), "must be a size such as 4GB"),
        ((*TO, "--float", "model.layers.9.*"), "--float model.layers.9.* fits no linear map within a layer, such as"),
        ((*TO, "--float", "*"), "--float * leaves no linear map to quantise"),
        ((*TO, "--float", "*.0.self_attn.q_proj"), "q_proj.weight as it is, but not model.layers.0.self_attn.k_proj"),
        ((*TO, "--float", "*.experts.3.*"), "engines keep them in one matrix"),
        ((*TO, "--flaot", "x"), "unknown flag --flaot; did you mean --float?"),
    ],
)  # fmt: skip
def test_words(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert quantize(source, tmp_path / "out", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("atb-models: error: ") and message in line
    assert not (tmp_path / "out").exists()


def test_source_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(tmp_path / "none", tmp_path / "out", *TO) == 2
    assert f"{tmp_path / 'none'} is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert quantize(tmp_path / "empty", tmp_path / "out", *TO) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_source_is_damaged(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(raw[:-100])
    assert quantize(source, tmp_path / "out", *TO) == 1
    assert "model.safetensors is truncated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_none(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = tensors_of(source)
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name][3, 5] = float("nan")
    tiny.write_weights(source, tensors)
    assert quantize(source, tmp_path / "out", *TO) == 1
    said = capsys.readouterr().err
    assert f"1 numbers of tensor {name} are infinite or no numbers" in said
    assert "--float 'model.layers.1.self_attn.o_proj' leaves it as it is" in said
    assert list((tmp_path / "out").glob("*.safetensors")) == []


def test_folders_that_meet(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    before = sorted(tmp_path.rglob("*"))
    for place in (source, link, source / "inside", tmp_path, source / ".." / "source"):
        assert quantize(source, place, *TO, "--overwrite") == 2
        assert "name a folder that is neither it nor in it" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_target_is_no_place(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert quantize(source, tmp_path / "file" / "out", *TO) == 2
    assert "is no folder, so nothing can be written" in capsys.readouterr().err


def test_target_is_not_empty(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    assert quantize(source, out, *TO) == 2
    assert f"{out} is not empty, it holds thesis.txt; name a new folder, or allow --over" in capsys.readouterr().err
    assert quantize(source, out, *TO, "--overwrite") == 2
    assert "is no checkpoint, it holds thesis.txt: --overwrite deletes only a checkpoint's" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_finished_one_is_overwritten_only_if_asked(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert quantize(source, out, *TO, "--max_shard_size", "0.1MB") == 0
    assert len(list(out.glob("*.safetensors"))) > 1
    assert quantize(source, out, "--to", "w8a8_dynamic") == 2
    assert config_of(out)["quantize"] == "w8a16" and "is not empty" in capsys.readouterr().err
    assert quantize(source, out, "--to", "w8a8_dynamic", "--overwrite") == 0
    assert config_of(out)["quantize"] == "w8a8_dynamic"
    assert len(list(out.glob("*.safetensors"))) == 1, "a file of the last one would be read with the new ones"


def test_disk_is_too_small(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = target.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda path: real._replace(free=10 << 20))
    assert quantize(source, tmp_path / "out", *TO) == 1
    said = capsys.readouterr().err
    assert "are still to be written, but only 10.0 MiB are free on its disk" in said
    assert list((tmp_path / "out").glob("*.safetensors")) == []
    monkeypatch.undo()
    assert quantize(source, tmp_path / "out", "--to", "w8a8_dynamic") == 0, "nothing was written yet: other flags do"


def test_two_at_once(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with open(out / target.LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert quantize(source, out, *TO) == 2
        assert f"another process writes to {out}" in capsys.readouterr().err
    assert quantize(source, out, *TO) == 0


def test_quantised_already(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(source, tmp_path / "first", *TO) == 0
    capsys.readouterr()
    assert quantize(tmp_path / "first", tmp_path / "second", "--to", "w8a8_dynamic") == 2
    assert "is quantised already" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_target_may_not_be_written(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert quantize(source, tmp_path / "closed" / "out", *TO) == 2
    assert "this user cannot write to" in capsys.readouterr().err


def test_config_that_is_no_model(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "config.json").write_text(json.dumps(config_of(source) | {"model_type": "gpt2"}))
    assert quantize(source, tmp_path / "out", *TO) == 2
    assert "model_type is 'gpt2'" in capsys.readouterr().err
