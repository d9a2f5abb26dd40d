"""HumanEval: which program an answer becomes, and the published solutions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from atb_models.errors import ConfigError
from modeltest.accuracy import run_accuracy
from modeltest.accuracy.data import find
from modeltest.accuracy.sandbox import check_sandbox
from modeltest.accuracy.sets import humaneval
from modeltest.command.cases import Options
from tests.harness.stand_in import StandIn, asked, run_of

RUN = run_of("full_HumanEval")
TASK = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef root(x):\n    """The square root."""\n',
    "test": "def check(candidate):\n    assert candidate(9) == 3\n",
    "entry_point": "root",
}
RIGHT = "    return math.sqrt(x)\n"


@pytest.fixture(scope="module")
def sandbox() -> None:
    """Skips where the machine has none."""
    try:
        check_sandbox()
    except ConfigError as error:
        pytest.skip(str(error))


def rows_file(folder: Path, *rows: object) -> Path:
    path = folder / "human-eval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "chat", "end"),
    [
        (RIGHT, False, "passed"),
        ("    return x\n", False, "AssertionError"),
        ("    return sqrt(x)\n", False, "NameError"),
        ("    return (x\n", False, "SyntaxError"),
        ("", False, "AssertionError"),
        ("    exit(0)\n", False, "NameError"),
        (f"Here:\n```python\ndef root(x):\n{RIGHT}```\nThat is it.", True, "passed"),
        (f"```\ndef root(x):\n{RIGHT}", True, "passed"),
        (f"```Python 3\ndef root(x):\n{RIGHT}```\nas in\n```\nroot(9)\n```", True, "passed"),
        ("I cannot.", True, "SyntaxError"),
    ],
)
@pytest.mark.usefixtures("sandbox")
def test_how_an_answer_is_scored(tmp_path: Path, text: str, chat: bool, end: str) -> None:
    model = StandIn(lambda prompt: text)
    [answer] = asked(humaneval.SET, model, [rows_file(tmp_path, TASK)], run_of("full_HumanEval", chat=chat))
    assert (answer.given, answer.correct, answer.text) == (end, end == "passed", text)
    assert model.params[0].max_tokens == 512
    assert model.params[0].stop_strings == (() if chat else ("\nclass", "\ndef", "\n#", "\nif", "\nprint"))


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.usefixtures("sandbox")
def test_the_published_solutions_pass(shared: Path, step: int) -> None:
    [path] = find("HumanEval", humaneval.SOURCE, shared / "data")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    solutions = {row["prompt"]: row["canonical_solution"] for row in rows}
    questions = humaneval.read([path], RUN)
    assert len(questions) == 164
    answers = humaneval.answer(StandIn(solutions.__getitem__), questions[::step], RUN)
    assert [answer.key for answer in answers if not answer.correct] == []


@pytest.mark.usefixtures("sandbox")
def test_broken_and_endless_solutions_do_not(shared: Path) -> None:
    [path] = find("HumanEval", humaneval.SOURCE, shared / "data")
    questions = humaneval.read([path], RUN)[::40]
    answers = humaneval.answer(StandIn(lambda prompt: "    return None\n"), questions, RUN)
    assert not any(answer.correct for answer in answers)
    endless = humaneval.answer(StandIn(lambda prompt: "    while True: pass\n"), questions[:1], RUN)
    assert [answer.given for answer in endless] == ["timed out"]


def test_a_task_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """As gunzip --keep leaves it; asked twice, a score would hide it."""
    packed = tmp_path / "human-eval.jsonl.gz"
    packed.write_bytes(gzip.compress(rows_file(tmp_path, TASK).read_bytes()))
    with pytest.raises(ConfigError, match=f"HumanEval/0 is in human-eval.jsonl and again in {packed}; leave one"):
        humaneval.read(find("HumanEval", humaneval.SOURCE, tmp_path), RUN)


def test_code_runs_only_when_allowed(tmp_path: Path, demo: Path) -> None:
    rows_file(tmp_path, TASK)
    with pytest.raises(ConfigError, match="allow it with --allow_code_execution"):
        run_accuracy(run_of("full_HumanEval", demo), Options(data_dir=tmp_path, output_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("sandbox")
def test_the_embedded_model_is_scored_by_running_what_it_writes(tmp_path: Path, demo: Path) -> None:
    rows_file(tmp_path, TASK)
    options = Options(data_dir=tmp_path, output_dir=tmp_path / "out", device="cpu", allow_code_execution=True)
    assert run_accuracy(run_of("full_HumanEval", demo), options) == 0
    [path] = tmp_path.glob("out/results/*/*/full_HumanEval/*/*/HumanEval_pa_batch1_tp1_full_result.json")
    [question] = json.loads(path.read_text("utf-8"))["results"]["questions"]
    assert question["key"] == "human-eval.jsonl:HumanEval/0" and question["golden"] == "passed"
    assert question["correct"] is False and question["text"]
