"""GSM8K: word problems whose answer is a number. Cobbe et al. 2021, arXiv:2110.14168."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from atb_models.errors import ConfigError
from modeltest.accuracy.asking import write
from modeltest.accuracy.data import Source, json_rows
from modeltest.accuracy.questions import LanguageModel, Question, QuestionSet, ScoredAnswer
from modeltest.command.cases import Run

FIELDS = {"question": str, "answer": str}
NEW_TOKENS = 512
TOLERANCE = 1e-4
# A minus belongs to the number unless something stands before it to subtract from: "10-3" ends with 3, "$-3" with -3.
# One with a blank behind it subtracts, or begins a line of a list.
_MINUS = r"(?:(?<![\w)\]%.])[-\u2212]\$?|\$[-\u2212])"
_NUMBER = re.compile(rf"({_MINUS})?((?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


def last_number(text: str) -> str:
    """The last number in `text`, without the commas of thousands and a currency; "" where there is none."""
    found = _NUMBER.findall(text)
    if not found:
        return ""
    minus, digits = found[-1]
    return ("-" if minus else "") + digits.replace(",", "")


def same(given: str, golden: str) -> bool:
    return bool(given) and abs(float(given) - float(golden)) <= TOLERANCE


def read(paths: Sequence[Path], run: Run) -> list[Question]:
    questions = []
    for path in paths:
        for key, row in json_rows(path, FIELDS):
            golden = last_number(row["answer"])
            if not golden:
                raise ConfigError(f"{path}: the answer of {key} has no number")
            questions.append(Question(key, path.name, row["question"], golden))
    return questions


def answer(model: LanguageModel, questions: Sequence[Question], run: Run) -> list[ScoredAnswer]:
    answers = []
    outputs = write(model, [question.prompt for question in questions], NEW_TOKENS, chat=run.chat)
    for question, output in zip(questions, outputs, strict=True):
        given = last_number(output.text)
        ids = output.prompt_token_ids, output.token_ids
        answers.append(ScoredAnswer(question.key, given, same(given, question.golden), *ids, text=output.text))
    return answers


SOURCE = Source(
    patterns=("*.jsonl",),
    licence="MIT",
    address="https://github.com/openai/grade-school-math",
    sha256={"test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"},
)
SET = QuestionSet("GSM8K", SOURCE, "text", read, answer)
