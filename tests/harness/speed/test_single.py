"""The modes for the user's own prompts: what is printed, how long answers are, which batches are timed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import ConfigError
from modeltest.command.cases import Options, Run
from modeltest.speed.single import groups, run_single

TEXTS = ("Who is the CEO of Google?", "What is deep learning?", "Hello")
FOLDER = "results/CPU/performance_test/performance_single/fp16/deepseek"
GOOGLE = "Sundar Pichai is the CEO of Google."


@pytest.fixture
def run(demo: Path) -> Run:
    return Run("fp16", "precision_single", "deepseek", demo, 1, ((2,),), pairs=((32, 14),), texts=TEXTS)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(device="cpu", output_dir=tmp_path / "out", chip="H200", no_plot=True)


def test_precision_ends_at_the_eos_token(
    run: Run, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_single(run, options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"Question[0]: {TEXTS[0]}", f"Answer[0]: {GOOGLE}", "Generate[0] token num: 11"]
    heads = ("Question[{}]", "Answer[{}]", "Generate[{}] token num")
    assert [line.split(":")[0] for line in lines] == [head.format(i) for i in range(3) for head in heads]
    assert not (tmp_path / "out").exists()


def test_performance_ignores_it_and_times_full_batches(
    run: Run, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(options, no_plot=False)
    assert run_single(replace(run, mode="performance_single", batch_sizes=((1, 2),)), options) == 0
    out = capsys.readouterr().out
    assert re.findall(r"Generate\[(\d)\] token num: (\d+)", out) == [(str(i), "14") for i in (0, 1, 2, 0, 1, 2)]
    assert out.count(f"Answer[0]: {GOOGLE}") == 2
    folder = tmp_path / "out" / FOLDER
    assert {path.name for path in folder.iterdir()} == {
        "performance_single_pa_batch1_2_tp1.json",
        *(f"performance_pa_batch{size}_tp1_{kind}.csv" for size in (1, 2) for kind in ("result", "formatted_result")),
    }
    record = json.loads((folder / "performance_single_pa_batch1_2_tp1.json").read_text())
    cases = record["results"]["cases"]
    assert record["options"]["no_plot"] is False
    assert [case["batch"] for case in cases] == [1, 1, 1, 2, 2]
    assert all(case["decode_steps"] == 13 and case["roofline_share"]["decode"] < 1 for case in cases)


def test_a_file_with_an_absolute_path(demo: Path, tmp_path: Path, modeltest: Callable[..., Any]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("Who is the CEO of Google?\n")
    words = ("pa_fp16", "precision_single", "[[32,20]]", file, 1, "deepseek", demo, 1, "--device", "cpu")
    out = modeltest(*words, OMP_NUM_THREADS="1").stdout
    assert out == f"Question[0]: {TEXTS[0]}\nAnswer[0]: {GOOGLE}\nGenerate[0] token num: 11\n"


def test_chat_puts_the_template_around(
    run: Run, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = replace(run, texts=TEXTS[:1], chat=True)
    run_single(replace(one, mode="performance_single"), options)
    assert "Answer[0]: Sundar" in capsys.readouterr().out
    folder = tmp_path / "out" / FOLDER
    chat = json.loads((folder / "performance_single_pa_batch2_tp1.json").read_text())["results"]["cases"][0]["in"]
    run_single(replace(one, chat=False, mode="performance_single"), options)
    plain = json.loads((folder / "performance_single_pa_batch2_tp1.json").read_text())["results"]["cases"][0]["in"]
    assert chat > plain


def test_a_prompt_beyond_its_pair(run: Run, options: Options) -> None:
    with pytest.raises(ConfigError, match="prompt 0 has 8 tokens, a pair allows 4; raise the pair's first number"):
        run_single(replace(run, pairs=((32, 4), (4, 4))), options)


def test_a_checkpoint_without_a_tokenizer(run: Run, options: Options, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.json").write_bytes((run.weight_dir / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="texts need a tokenizer"):
        run_single(replace(run, weight_dir=folder), replace(options, load_format="dummy"))


def test_batches_are_filled_with_the_first_prompts() -> None:
    assert groups([[1], [2], [3]], 2) == [[[1], [2]], [[3], [1]]]
    assert groups([[1]], 3) == [[[1], [1], [1]]]
