"""GSM8K: which number counts as the answer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from atb_models.errors import ConfigError
from modeltest.accuracy import run_accuracy
from modeltest.accuracy.data import find
from modeltest.accuracy.sets import gsm8k
from modeltest.command.cases import Options
from tests.harness.stand_in import StandIn, asked, run_of

RUN = run_of("full_GSM8K")
QUESTION = {"question": "How many legs have two dogs?", "answer": "4 + 4 = <<4+4=8>>8\n#### 8"}


def rows_file(folder: Path, *rows: object) -> Path:
    path = folder / "GSM8K.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("It costs $1,234,567.50.", "1234567.50"),
        ("first 7, then 3.", "3"),
        ("between 3,4 and 5", "5"),
        ("3,40", "40"),
        ("a loss of -12", "-12"),
        ("a loss of -$12", "-12"),
        ("a loss of $-12", "-12"),
        ("\u22125 degrees", "-5"),
        ("10-3", "3"),
        ("(10)-3", "3"),
        ("so it is 10 - 3", "3"),
        ("We have:\n\n- 5 apples", "5"),
        ("x = -0.5", "-0.5"),
        ("half is .5", ".5"),
        ("50%", "50"),
        ("It is 8.\n\nQuestion 2", "2"),
        ("no digits", ""),
        ("", ""),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str) -> None:
    assert gsm8k.last_number(text) == number


@pytest.mark.parametrize(
    ("given", "golden", "same"),
    [("8", "8.00", True), ("8.00009", "8", True), ("8.001", "8", False), ("-8", "8", False), ("", "8", False)],
)
def test_numbers_are_the_same_within_the_tolerance(given: str, golden: str, same: bool) -> None:
    assert gsm8k.same(given, golden) is same


def test_what_is_asked_and_scored(tmp_path: Path) -> None:
    path = rows_file(tmp_path, QUESTION, {**QUESTION, "question": "And three?", "answer": "#### 1,200"})
    model = StandIn(lambda prompt: "So 8." if "two" in prompt else "It is $1,300")
    first, second = asked(gsm8k.SET, model, [path], RUN)
    assert model.prompts == [["How many legs have two dogs?", "And three?"]]
    assert (model.params[0].max_tokens, model.params[0].temperature, model.params[0].repetition_penalty) == (512, 0, 1)
    assert (first.given, first.correct, first.text) == ("8", True, "So 8.")
    assert (second.given, second.correct) == ("1300", False)


def test_an_answer_without_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GSM8K.jsonl:1 has no number"):
        gsm8k.read([rows_file(tmp_path, {**QUESTION, "answer": "eight"})], RUN)


def test_the_published_answers_are_those_behind_the_mark(shared: Path) -> None:
    [path] = find("GSM8K", gsm8k.SOURCE, shared / "data")
    questions = gsm8k.read([path], RUN)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(questions) == len(rows) == 1319
    for question, row in zip(questions, rows, strict=True):
        mark = re.fullmatch(r".*#### (-?[\d,.]+)", row["answer"], re.DOTALL)
        assert mark and question.golden == mark[1].replace(",", "")


def test_the_embedded_model_is_scored_by_what_it_writes(tmp_path: Path, demo: Path) -> None:
    rows_file(tmp_path, QUESTION, QUESTION)
    options = Options(data_dir=tmp_path, output_dir=tmp_path / "out", device="cpu", limit=1)
    assert run_accuracy(run_of("full_GSM8K", demo), options) == 0
    [path] = tmp_path.glob(
        "out/results/CPU/precision_test/full_GSM8K/fp16/deepseek/GSM8K_pa_batch1_tp1_full_result.json"
    )
    found = json.loads(path.read_text("utf-8"))["results"]
    assert (found["scored"], found["n"], found["data"][0]["rows"]) == ("text", 1, 2)
    [question] = found["questions"]
    assert question["answer"] == gsm8k.last_number(question["text"]) and question["golden"] == "8"
