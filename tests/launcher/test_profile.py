"""run_pa --profile and ATB_PROFILING_ENABLE, from the command line to the files."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import env, ops
from atb_models.launcher import main as run_pa
from atb_models.launcher import profiling
from atb_models.launcher.args import parse_args
from atb_models.machine import cores as cores_module
from atb_models.ops.native.library import active
from atb_models.plan import this_cpu
from atb_models.plan.chips import load_chips
from tests.profiler.test_tables import check_trace
from tests.tiny import write_checkpoint

QUESTION = ["--is_chat_model", "--input_texts", "Who is the CEO of Google?", "--device", "cpu"]
IDS = ["--input_ids", "1,5,9,20", "3,4,5", "--device", "cpu", "--max_output_length", "4", "--ignore_eos"]
FILES = ["profile.json", "trace.json"]

pytestmark = pytest.mark.usefixtures("clean_environ")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files are to go."""
    monkeypatch.setenv("PROFILING_FILEPATH", str(tmp_path / "the profile"))
    return tmp_path / "the profile"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """run_pa in this process, with a chip that need not be measured: status, output, errors."""
    status = run_pa.main([*argv, "--profile", "--chip", "h200"])
    return status, *capsys.readouterr()


def outside(root: Path, tmp_path: Path, *argv: str, **environ: str) -> tuple[str, str]:
    """run_pa as a program on the embedded checkpoint: output, errors."""
    command = [sys.executable, str(root / "run_pa.py"), *QUESTION, *argv]
    variables = {**os.environ, **environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=variables)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout, ended.stderr


def milliseconds(err: str, part: str) -> float:
    (found,) = re.findall(rf"^ +{part} +([0-9.]+) ms", err, re.MULTILINE)
    return float(found)


def test_flag_on_one_rank(root: Path, tmp_path: Path) -> None:
    out, err = outside(root, tmp_path, "--profile", "--stream")
    assert out.startswith("Answer[0]: Sundar Pichai") and "profile" not in out
    assert "profile of rank 0 of 1: " in err and "fp16 on cpu, 1 thread" in err and "roofline   this CPU" in err
    parts = ("operations", "between operations", "outside the model", "recorder")
    assert sum(milliseconds(err, part) for part in parts) == pytest.approx(milliseconds(err, "wall time"), abs=0.05)
    folder = tmp_path / "profiling"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}
    check_trace(json.loads((folder / "trace.json").read_text())["traceEvents"])
    content = json.loads((folder / "profile.json").read_text())
    assert content["chip"]["name"] == "this CPU" and content["ranks"] == 1
    level = active().level
    served = f"the CPU library's read loop ({level.name})" if level else "torch, no level of the CPU library serves"
    assert served in content["chip"]["sources"]["bandwidth_gb_s"] and served in err
    rows = {row["name"]: row for row in content["operations"]}
    whole = level is not None  # a composite is one row then
    assert ("FeedForwardSublayer" in rows) == whole != ("GroupedMatmul" in rows)
    for row in rows.values():
        bound = row["roofline_s_by_limit"]
        assert bound.keys() <= {"memory", "compute"} and sum(bound.values()) == pytest.approx(row["roofline_s"])
    assert re.search(r"^operation +calls .* roofline % +limit +lost ms", err, re.MULTILINE)
    assert re.search(r"^Linear .* (memory|compute)( \d+%)? +-?[0-9.]+  cpu$", err, re.MULTILINE)
    steps = [step["kind"] for step in content["steps"]]
    assert steps == ["prefill"] + ["decode"] * (len(steps) - 1)


def test_variable_on_two_ranks(root: Path, tmp_path: Path) -> None:
    switches = {"ATB_PROFILING_ENABLE": "1", "PROFILING_FILEPATH": "here", "PROFILING_LEVEL": "Level1"}
    _, err = outside(root, tmp_path, "--tp", "2", "--chip", "RTX 3090", **switches)
    assert "profile of rank 0 of 2: " in err and err.count("profile of rank") == 1
    assert "set, but nothing here reads them: PROFILING_LEVEL " in err
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    content = json.loads((tmp_path / "here" / "profile.json").read_text())
    calls = {row["name"]: row["calls"] for row in content["operations"]}
    assert (calls["AllReduce"], calls["AllGather"]) == (8 * len(content["steps"]), len(content["steps"]))
    reduce = next(row for row in content["operations"] if row["name"] == "AllReduce")
    latency = content["chip"]["latency_us"]
    assert reduce["roofline_s"] > reduce["calls"] * latency * 1e-6 > 0


def test_together_with_the_other_results(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weights: str, tmp_path: Path, folder: Path
) -> None:
    for name in ("BENCHMARK", "LOGITS_SAVE", "TOKEN_IDS_SAVE"):
        monkeypatch.setenv(f"ATB_LLM_{name}_ENABLE", "1")
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, weights, *IDS, "--max_batch_size", "2")
    assert status == 0, err
    assert "the benchmark's times include the work of the profile's recorder" in err
    assert err.index("end warm_up") < err.index("profile of rank 0") < err.index("end inference")
    content = json.loads((folder / "profile.json").read_text())
    # the warm-up's steps are left out
    assert [(step["kind"], step["tokens"]) for step in content["steps"]] == [("prefill", 7)] + [("decode", 2)] * 3
    names = {path.name for path in tmp_path.iterdir()}
    assert {"benchmark_result", "logits_0.pth", "input_ids_1.pth", "the profile"} <= names


def test_no_profile_unless_asked_for(capsys: pytest.CaptureFixture[str], weights: str, folder: Path) -> None:
    assert run_pa.main([weights, *IDS]) == 0
    assert "profile" not in capsys.readouterr().err
    assert not folder.exists()


def test_folder_is_looked_at_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weights: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROFILING_FILEPATH", str(tmp_path / "file" / "below"))
    status, out, err = run(capsys, weights, *IDS)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"atb-models: error: PROFILING_FILEPATH: .*/file is no folder.*\n", err)


def test_unknown_chip_is_named_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str], weights: str) -> None:
    status = run_pa.main([weights, *IDS, "--profile", "--chip", "abacus"])
    err = capsys.readouterr().err
    assert status == 2 and "there is no chip 'abacus'" in err and "loading" not in err


@pytest.mark.parametrize("name", ["all", "ALL"])
def test_all_chips_are_of_a_plan(capsys: pytest.CaptureFixture[str], weights: str, name: str) -> None:
    status = run_pa.main([weights, *IDS, "--profile", "--chip", name])
    err = capsys.readouterr().err
    assert status == 2 and "--chip all is of --plan only" in err and "loading" not in err


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch's CUDA libraries take 3 GiB to map")
def test_this_cpu_is_measured_where_the_address_space_is_small(root: Path, tmp_path: Path) -> None:
    """A full batch's KV pool would leave nothing for it."""
    limit = f"ulimit -v 3000000; exec {sys.executable} {root / 'run_pa.py'} --profile --device cpu"
    command = ["bash", "-c", f"{limit} --max_output_length 2 --max_batch_size 200"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=variables)
    assert ended.returncode == 0, ended.stderr
    assert "profile of rank 0 of 1: embedded checkpoint, " in ended.stderr
    assert "\n  roofline   this CPU\n    memory " in ended.stderr


def test_without_memory_to_measure_there_is_no_roofline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weights: str, folder: Path
) -> None:
    monkeypatch.setattr(this_cpu, "LEAST_BLOCK_BYTES", 1 << 50)
    status = run_pa.main([weights, *IDS, "--profile"])
    err = capsys.readouterr().err
    assert status == 0
    assert "  roofline   none: there is too little memory to measure this CPU; choose a chip with --chip NAME\n" in err
    content = json.loads((folder / "profile.json").read_text())
    assert content["chip"] is None and content["no_chip"] == "there is too little memory to measure this CPU"


@pytest.mark.parametrize(("rank", "ranks", "cores"), [(None, 3, 3), ("0", 2, 2), ("1", 2, None)])
def test_rank_0_measures_before_there_is_a_model(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, ranks: int, cores: int | None
) -> None:
    """The cores of all ranks of the run; other ranks than 0, which torchrun starts, measure nothing."""
    measured: list[int] = []
    monkeypatch.setattr(this_cpu, "measure_cpu", lambda cores, room: measured.append(cores))
    monkeypatch.setattr(cores_module, "used_cores", lambda ranks: ranks)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
    argv = ["--profile", *([] if rank else ["--tp", str(ranks)])]
    profiling.Profiling(parse_args(argv), "cpu")
    assert measured == ([] if cores is None else [cores])


def test_variable_is_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not parse_args([]).profile
    monkeypatch.setenv("ATB_PROFILING_ENABLE", "1")
    assert parse_args(["--chip", "H200"]).profile
    assert not parse_args(["--plan"]).profile
    assert env.get("PROFILING_FILEPATH") == Path("profiling")


def test_interrupted_run_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, weights: str, folder: Path
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    ops.bind("cpu")
    before = [operation.run for operation in ops.operations()]
    monkeypatch.setattr(run_pa.AnswerPrinter, "update", interrupt)
    status, _, err = run(capsys, weights, *IDS)
    assert (status, err.splitlines()[-1]) == (130, "atb-models: error: interrupted")
    assert "profile of rank" not in err and not folder.exists()
    assert [operation.run for operation in ops.operations()] == before


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(errno.ENOSPC, "No space left on device"), 1, "profile.json")],
)
def test_no_half_written_file(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    folder: Path,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    def dump(_: Any, stream: Any) -> None:
        stream.write("[")
        raise error

    monkeypatch.setattr(profiling.json, "dump", dump)
    seen, out, err = run(capsys, weights, *IDS)
    assert seen == status and message in err.splitlines()[-1]
    assert out.startswith("Answer[0]: ") and "profile of rank 0 of 1" in err  # what there is is not lost
    assert list(folder.iterdir()) == []


def test_cuda_takes_the_chip_by_the_devices_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    args = parse_args(["--profile"])
    for name, chip in (("NVIDIA H200", "H200"), ("NVIDIA GeForce RTX 3090", "RTX 3090"), ("NVIDIA X1", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        chosen = profiling.Profiling(args, "cuda")
        assert chosen._chip == (load_chips()[chip] if chip else None)
        assert (chosen._no_chip is None) == (chip is not None)
