"""A run that is ended goes on: by Ctrl-C, by a kill, with finished files kept and half-written ones never named."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from atb_models.quantizer.record import LOCK, NAME
from tests.quantizer.written import quantize, tensors_of

WORDS = ("--to", "w8a16", "--max_shard_size", "0.2MB")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tiny.write_checkpoint(folder, hidden_size=128, num_hidden_layers=8)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing ended."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert quantize(source, folder, *WORDS) == 0
    tensors_of(folder)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def ended(source: Path, target: Path, number: signal.Signals, files: int) -> tuple[int, str]:
    """Start the command, send it a signal when so many files are there -> exit status and what it said."""
    command = [sys.executable, "-m", "atb_models", "quantize", str(source), str(target), *WORDS, "--no_check"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(list(target.glob("*.safetensors"))) < files:
            time.sleep(0.001)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_run_goes_on(
    source: Path, whole: dict[str, bytes], tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    status, said = ended(source, out, number, 3)
    if number == signal.SIGINT:
        assert status == 130 and f"{out} is not finished; the same command goes on with it" in said
        assert said.endswith("atb-models: error: interrupted\n")
        assert [name for name in os.listdir(out) if ".safetensors." in name] == []
    else:
        assert status == -number
    kept = {path: path.stat().st_ino for path in out.glob("*.safetensors")}
    assert 3 <= len(kept) < len([name for name in whole if name.endswith(".safetensors")]), "it was over too soon"
    assert all(path.read_bytes() == whole[path.name] for path in kept), "a file has its name only when it is whole"
    assert not (out / "config.json").exists(), "nobody takes it for a checkpoint"
    assert quantize(source, out, *WORDS) == 0
    assert contents(out) == whole
    assert {path: path.stat().st_ino for path in kept} == kept, "finished files are not written again"


def test_other_options_or_another_source_are_refused(
    source: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    ended(source, out, signal.SIGKILL, 2)
    before = contents(out)
    for words, name in (
        (("--to", "w8a8_dynamic", *WORDS[2:]), "--to was 'w8a16', now it is 'w8a8_dynamic'"),
        ((*WORDS[:2], "--max_shard_size", "0.3MB"), "--max_shard_size was 200000, now it is 300000"),
        ((*WORDS, "--format", "compressed-tensors"), "--format was 'modelslim'"),
        ((*WORDS, "--float", "*.o_proj"), "--float was []"),
    ):
        assert quantize(source, out, *words) == 2
        said = capsys.readouterr().err
        assert f"{out} holds the unfinished result of another command: its {name}" in said
        assert "repeat that command, or begin anew with --overwrite" in said
    os.utime(source / "model.safetensors")
    assert quantize(source, out, *WORDS) == 2
    assert "its source is another one, or has changed since" in capsys.readouterr().err
    assert contents(out) == before
    assert quantize(source, out, *WORDS, "--overwrite") == 0
    assert contents(out) == whole


def test_a_finished_file_that_was_cut_is_written_again(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended(source, out, signal.SIGKILL, 3)
    first, second, third = sorted(out.glob("*.safetensors"))[:3]
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(third.read_bytes())
    assert quantize(source, out, *WORDS) == 0
    assert contents(out) == whole


def test_a_full_disk_is_one_line_and_leaves_no_half_file(source: Path, tmp_path: Path) -> None:
    """By a limit of the size of files, which is met as a full disk is: in the middle of a write."""
    out = tmp_path / "out"
    words = [str(source), str(out), "--to", "w8a16", "--no_check"]
    command = f"ulimit -f 300; exec {sys.executable} -m atb_models quantize {' '.join(words)}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    error = ran.stderr.splitlines()[-1]
    name = "quant_model_weights-00001-of-00001.safetensors"
    assert error.startswith(f"atb-models: error: {out}/{name} cannot be written: ")
    assert sorted(os.listdir(out)) == [NAME]
    assert quantize(source, out, "--to", "w8a16") == 0


def test_the_bar_shows_the_time_left(source: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "atb_models", "quantize", str(source), str(tmp_path / "out"), *WORDS, "--no_check"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0
    bars = re.findall(r"quantizing: +(\d+)%.*?<(\d\d:\d\d|\?)", ran.stderr)
    assert bars[0][0] == "0" and bars[-1] == ("100", "00:00")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantize"] == "w8a16"
