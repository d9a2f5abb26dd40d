"""The journal: a run that was killed goes on, with the same result; another run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atb_models.demo import boolq_path
from atb_models.errors import ConfigError
from modeltest.accuracy import run_accuracy
from modeltest.accuracy.journal import AnsweredBatch, Journal
from modeltest.accuracy.questions import ScoredAnswer
from modeltest.accuracy.weights import identity
from modeltest.command.cases import Options
from tests.harness.stand_in import run_of

COUNT = 80
PLACE = Path("CPU") / "precision_test" / "full_BoolQ" / "fp16" / "deepseek"
SETTINGS = {"batch_size": 1, "weights": {"config.json": "aa"}, "shots": None}
REMARKS = {"git": {"revision": "one"}}


def answer(number: int) -> ScoredAnswer:
    return ScoredAnswer(
        f"q:{number}", "yes\u2028\ud800", True, [1, number], [2], "text", {"yes": -0.1 * number}, {"mc2": 1 / 3}
    )


def batch(number: int) -> AnsweredBatch:
    return AnsweredBatch([answer(number)], 0.25)


def written(path: Path, count: int) -> list[AnsweredBatch]:
    """A journal with so many batches."""
    with Journal(path, SETTINGS, REMARKS, resume=False) as journal:
        for number in range(count):
            journal.add(batch(number))
        return journal.batches


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    batches = written(tmp_path / "debug" / "j", 3)
    with Journal(tmp_path / "debug" / "j", SETTINGS, REMARKS, resume=True) as journal:
        assert journal.batches == batches == [batch(0), batch(1), batch(2)]


def test_answers_of_an_earlier_run_are_kept_beside_a_new_one(tmp_path: Path) -> None:
    written(tmp_path / "j", 2)
    answered = (tmp_path / "j").read_bytes()
    for _ in range(2):  # the second finds no answers, which replace none
        written(tmp_path / "j", 0)
        assert (tmp_path / "j.old").read_bytes() == answered


@pytest.mark.parametrize("cut", [1, 10, 150])
def test_a_torn_last_line_is_dropped_and_written_anew(tmp_path: Path, cut: int) -> None:
    written(tmp_path / "j", 3)
    whole = (tmp_path / "j").read_bytes()
    os.truncate(tmp_path / "j", len(whole) - cut)
    with Journal(tmp_path / "j", SETTINGS, REMARKS, resume=True) as journal:
        assert journal.batches == [batch(0), batch(1)]
        journal.add(batch(2))
    assert (tmp_path / "j").read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b'{"journal": 1, "fing'])
def test_a_run_killed_at_its_start_begins_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with Journal(tmp_path / "j", SETTINGS, REMARKS, resume=True) as journal:
        assert journal.batches == []
    with Journal(tmp_path / "j", SETTINGS, REMARKS, resume=True) as journal:
        assert journal.batches == []


def test_without_resume_the_journal_starts_anew(tmp_path: Path) -> None:
    written(tmp_path / "j", 3)
    assert written(tmp_path / "j", 0) == []
    assert len((tmp_path / "j").read_text().splitlines()) == 1


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    written(tmp_path / "j", 1)
    before = (tmp_path / "j").read_bytes()
    other: dict[str, Any] = {**SETTINGS, "weights": {"config.json": "bb"}, "shots": 5}
    with pytest.raises(ConfigError, match="weights.config.json 'aa', now 'bb'; shots None, now 5; give its settings"):
        Journal(tmp_path / "j", other, REMARKS, resume=True)
    assert (tmp_path / "j").read_bytes() == before


def test_another_revision_is_only_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path / "j", 1)
    with Journal(tmp_path / "j", SETTINGS, {"git": {"revision": "two"}}, resume=True) as journal:
        assert len(journal.batches) == 1
    assert "git.revision 'one', now 'two'" in caplog.text


@pytest.mark.parametrize("line", ["{}", "[1]", "x", '{"seconds": 1, "answers": [{"key": "a"}]}'])
def test_a_damaged_journal_is_refused(tmp_path: Path, line: str) -> None:
    written(tmp_path / "j", 1)
    with (tmp_path / "j").open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(ConfigError, match="is damaged .* run without --resume"):
        Journal(tmp_path / "j", SETTINGS, REMARKS, resume=True)


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", SETTINGS, REMARKS, resume=False):
        with pytest.raises(ConfigError, match="another run writes"):
            Journal(tmp_path / "j", SETTINGS, REMARKS, resume=True)


def test_no_size_is_asked_when_the_journal_of_another_is_refused(demo: Path, tmp_path: Path) -> None:
    one = Options(data_dir=boolq_path(), limit=2, output_dir=tmp_path, device="cpu")
    assert run_accuracy(run_of("full_BoolQ", demo, batch_sizes=((2,),)), one) == 0
    other = replace(one, limit=3, resume=True)
    with pytest.raises(ConfigError, match="BoolQ_pa_batch2_tp1_journal.jsonl is of .*: limit 2, now 3; prompts"):
        run_accuracy(run_of("full_BoolQ", demo, batch_sizes=((1, 2),)), other)
    first = tmp_path / "debug" / PLACE / "BoolQ_pa_batch1_tp1_journal.jsonl"
    assert len(first.read_text().splitlines()) == 1


def test_weights_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12")
    first, dummy = identity(tmp_path, dummy=False), identity(tmp_path, dummy=True)
    os.utime(tmp_path / "model.safetensors", (1, 1))
    second = identity(tmp_path, dummy=False)
    assert [name for name in first if first[name] != second[name]] == ["model.safetensors"]
    assert identity(tmp_path, dummy=True) == dummy and list(dummy) == ["config.json"]


def command(demo: Path, output: Path, *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "modeltest", "pa_fp16", "full_BoolQ", "1", "deepseek", str(demo), "1", "--device", "cpu",
        "--data_dir", str(boolq_path()), "--limit", str(COUNT), "--output_dir", str(output), *flags,
    ]  # fmt: skip


def environ(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "ASCEND_RT_VISIBLE_DEVICES": ""}


def kill_half_way(words: list[str], journal: Path, environment: dict[str, str]) -> None:
    """SIGKILL to the command once its journal has half of the batches."""
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not journal.exists() or journal.read_bytes().count(b"\n") <= COUNT // 2:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def without_times(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text("utf-8"))["results"]
    assert results.pop("seconds") > 0
    return results


def test_a_killed_run_goes_on_to_the_identical_result(demo: Path, root: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    journal = killed / "debug" / PLACE / "BoolQ_pa_batch1_tp1_journal.jsonl"
    kill_half_way(command(demo, killed), journal, environ(root))
    kept = journal.read_bytes()
    assert not (killed / "results").exists() and 0 < kept.count(b"\n") <= COUNT
    subprocess.run(command(demo, killed, "--resume"), env=environ(root), check=True, capture_output=True)
    assert journal.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])

    run = run_of("full_BoolQ", demo)
    assert run_accuracy(run, Options(data_dir=boolq_path(), limit=COUNT, output_dir=whole, device="cpu")) == 0
    results = [folder / "results" / PLACE / "BoolQ_pa_batch1_tp1_full_result" for folder in (killed, whole)]
    first, second = (path.with_suffix(".csv").read_bytes() for path in results)
    assert first == second and b"total" in first
    assert without_times(results[0].with_suffix(".json")) == without_times(results[1].with_suffix(".json"))
