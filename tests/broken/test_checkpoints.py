"""Broken checkpoints are refused soon, in little memory, with the file and the field; never by a traceback."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atb_models import LLM, SamplingParams
from atb_models.demo import demo_path
from atb_models.errors import AtbError, RequestError
from tests.broken.checkpoints import broken_checkpoint, clear
from tests.broken.limits import MOST_BYTES, limits

SEEDS, MANY = 100, 2000
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "kv_blocks": 4, "block_size": 16, "max_batch_size": 1}
PARAMS = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What the first model of a process imports is no time of a broken file."""
    with LLM(**OPTIONS) as llm:
        llm.generate([[3, 1, 2]], PARAMS)


def outcome(folder: Path, damaged: str, log: pytest.LogCaptureFixture) -> str:
    """How it ended: "refused" with a message that names the file, "warned" of odd numbers, or "used"."""
    log.clear()
    try:
        with LLM(folder, max_prefill_tokens=8, **OPTIONS) as llm:
            outputs = llm.generate([[3, 1, 2]], PARAMS)
    except RequestError as error:  # a step without a finite logit, or a model of fewer positions or ids than asked for
        assert len(str(error)) < 1000, str(error)
        return "request"
    except AtbError as error:
        message = str(error)
        assert damaged in message and str(folder) in message and len(message) < 2000, message
        return "refused"
    warned = [record for record in log.records if "infinite or no numbers" in record.getMessage()]
    assert len(warned) <= 1 and all(damaged in record.getMessage() for record in warned)
    assert outputs[0].finish_reason in (("stop", "length", "error") if warned else ("stop", "length"))
    return "warned" if warned else "used"


def run(seeds: range, folder: Path, log: pytest.LogCaptureFixture) -> Counter[str]:
    ends: Counter[str] = Counter()
    for seed in seeds:
        damaged = broken_checkpoint(seed, folder / str(seed))
        try:
            with limits():
                ends[outcome(folder / str(seed), damaged, log)] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {damaged}: {type(error).__name__}: {error}") from error
        clear(folder / str(seed))
    return ends


def test_broken_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ends = run(range(SEEDS), tmp_path, caplog)
    assert ends["refused"] > SEEDS / 2 and ends["used"], ends


@pytest.mark.full
@pytest.mark.parametrize("part", range(20))
def test_many_broken_checkpoints(tmp_path: Path, part: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    size = MANY // 20
    ends = run(range(SEEDS + part * size, SEEDS + (part + 1) * size), tmp_path, caplog)
    assert ends["refused"] > size / 2 and ends["used"], ends


# --------------------------------------------------------------------------------------- as commands, from outside


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the embedded checkpoint."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(demo_path(), folder)
    yield folder


def command(folder: Path, *words: str) -> tuple[int, str, float, int]:
    """Status, stderr, processor seconds and peak bytes of a command on a checkpoint."""
    words = (words[0], "--model_path", str(folder), "--device", "cpu", *words[1:])
    process = subprocess.Popen(
        [sys.executable, "-m", "atb_models", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, said, usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


@pytest.mark.parametrize("name", ["run", "plan", "graph"])
@pytest.mark.parametrize(
    ("field", "number"),
    [("num_hidden_layers", 10**9), ("vocab_size", 10**12), ("n_routed_experts", 2**62), ("rms_norm_eps", 1e308)],
)
def test_absurd_numbers_end_a_command(name: str, field: str, number: float, model: Path, tmp_path: Path) -> None:
    """Within 5 s and 1 GiB, in one line, from the file as from the command line."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: number}))
    overridden = command(model, name, "--config_overrides", json.dumps({field: number}))
    for (status, said, seconds, peak), where in (
        (command(folder, name), str(folder / "config.json")),
        (overridden, "config_overrides"),
    ):
        (line,) = [line for line in said.split("\n") if "error:" in line]
        assert status == 2 and line.startswith(f"atb-models: error: {where}: {field} is "), said
        assert seconds < 5 and peak < MOST_BYTES and "Traceback" not in said


def test_a_configuration_of_a_larger_model_than_the_files_is_told_so(model: Path) -> None:
    """Rather than that the model does not fit, which it would."""
    overrides = json.dumps({"intermediate_size": 1 << 20, "vocab_size": 1 << 20, "hidden_size": 1 << 14})
    status, said, seconds, peak = command(model, "run", "--config_overrides", overrides)
    assert status == 1 and peak < MOST_BYTES and seconds < 30, said
    assert f"{model / 'model.safetensors'}: tensor model.embed_tokens.weight has shape (2496, 128)" in said
    assert "but config.json makes it (1048576, 16384)" in said and "does not fit" not in said


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "is truncated: tensor model.norm.weight ends at byte "),
        (lambda data: data + b"\0", "has 1 bytes behind the last tensor, model.norm.weight"),
        (lambda data: data.replace(b"[128]", b"[127]", 1), "of shape (127,) and type F16 needs 254 bytes"),
        (lambda data: data.replace(b'"F16"', b'"I16"', 1), " is I16, but only F16, BF16, F32 can be read"),
        (lambda data: data[:9] + b"\xff" + data[10:], "the safetensors header is not valid JSON"),
    ],
)
def test_a_damaged_file_ends_a_command_in_a_line(damage: Callable[[bytes], bytes], said: str, model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    try:
        status, told, _, peak = command(model, "run", "--max_output_length", "2")
    finally:
        file.write_bytes(whole)
    (line,) = [line for line in told.split("\n") if "error:" in line]
    assert status == 1 and line.startswith(f"atb-models: error: {file}") and said in line, told
    assert "Traceback" not in told and peak < MOST_BYTES
