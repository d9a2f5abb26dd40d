"""Broken files of question sets are refused with the file and the place in it, or read; never by a traceback."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from atb_models.errors import ConfigError
from modeltest.accuracy.data import find
from modeltest.accuracy.questions import QuestionSet
from modeltest.accuracy.sets import SETS
from tests.broken.damage import damaged_bytes, damaged_values
from tests.harness.stand_in import StandIn, run_of

BOOLQ = '{"title": "火", "question": "is it hot", "passage": "Fire.", "answer": true}\n'
GSM8K = '{"question": "1 + 1?", "answer": "It is 2.\\n#### 2"}\n'
HUMANEVAL = '{"task_id": "T/0", "prompt": "def f():", "test": "def check(f): ...", "entry_point": "f"}\n'
CHOICES = '"Which, mostly?",a tree,"a ""stone""",a cloud,"a\nlamp",A\nWhich?,1,2,3,4,B\n'
TRUTHFUL = (
    "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    'A,B,"Is it, so?",Yes,"Yes; It is","No; It is not",x\n'
)
HEADED = "id,question,A,B,C,D,answer\n0,冰是,热的,冷的,软的,甜的,B\n"
FILES: dict[str, dict[str, str]] = {
    "BoolQ": {"dev.jsonl": BOOLQ * 3},
    "GSM8K": {"test.jsonl": GSM8K * 3},
    "HumanEval": {"HumanEval.jsonl": HUMANEVAL + HUMANEVAL.replace("T/0", "T/1")},
    "MMLU": {"test/a_test.csv": CHOICES, "dev/a_dev.csv": CHOICES},
    "CEval": {"val/a_val.csv": HEADED, "dev/a_dev.csv": HEADED},
    "CMMLU": {"test/a.csv": HEADED.replace("question", "Question").replace("answer", "Answer")},
    "TruthfulQA": {"TruthfulQA.csv": TRUTHFUL},
}
PLACE = re.compile(
    r"line \d|row \d|has no column|has no rows|answer of \S+:\d+ has no number|has \d+ rows|is in \S+ and"
)


def broken_set(name: str, seed: int, folder: Path) -> None:
    random = Random(seed)
    files = FILES[name]
    damaged = random.choice(list(files))
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        if file == damaged and file.endswith(".jsonl") and random.random() < 0.6:
            lines = text.strip().split("\n")
            place = random.randrange(len(lines))
            lines[place] = damaged_values(lines[place], random)
            data = "\n".join(lines).encode("utf-8", "surrogatepass")
        elif file == damaged:
            data = damaged_bytes(data, random)
            data = data.replace(b",", random.choice((b",", b"\r", b'"', b";")), random.randrange(3))
        (folder / file).write_bytes(data)


def outcome(question_set: QuestionSet, folder: Path) -> str:
    run = run_of(f"full_{question_set.name}", shots=1 if question_set.name in ("MMLU", "CEval") else None)
    try:
        questions = question_set.read(find(question_set.name, question_set.source, folder), run)
    except ConfigError as error:
        assert str(folder) in str(error) and PLACE.search(str(error)), str(error)
        return "refused"
    if questions and question_set.name != "HumanEval":  # whose programs would be run
        question_set.answer(StandIn(lambda prompt: "A 1"), questions, run)
    return "read"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", [15, pytest.param(300, marks=pytest.mark.full)])
def test_broken_question_files(tmp_path: Path, name: str, size: int) -> None:
    ends: Counter[str] = Counter()
    for seed in range(size):
        folder = tmp_path / str(seed)
        broken_set(name, seed, folder)
        try:
            ends[outcome(SETS[name], folder)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert ends["refused"] >= size / 5, ends
