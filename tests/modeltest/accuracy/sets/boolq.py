"""BoolQ: yes/no questions about a passage. Clark et al. 2019, arXiv:1905.10044."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeltest.accuracy.asking import choose
from modeltest.accuracy.data import Source, json_rows
from modeltest.accuracy.questions import LanguageModel, Question, QuestionSet, ScoredAnswer
from modeltest.command.cases import Run

FIELDS = {"title": str, "question": str, "passage": str, "answer": bool}
WORDS = {"no": "no", "yes": "yes"}  # equal log-probabilities are a no: only yes > no counts as True


def prompt(row: Mapping[str, Any]) -> str:
    return f"{row['title']} -- {row['passage']}\nQuestion: {row['question']}?\nAnswer:"


def read(paths: Sequence[Path], run: Run) -> list[Question]:
    return [
        Question(key, path.name, prompt(row), str(row["answer"]))
        for path in paths
        for key, row in json_rows(path, FIELDS)
    ]


def answer(model: LanguageModel, questions: Sequence[Question], run: Run) -> list[ScoredAnswer]:
    answers = []
    choices = choose(model, [question.prompt for question in questions], WORDS, chat=run.chat)
    for question, choice in zip(questions, choices, strict=True):
        given = str(choice.label == "yes")
        ids = choice.output.prompt_token_ids, choice.output.token_ids
        answers.append(ScoredAnswer(question.key, given, given == question.golden, *ids, logprobs=choice.logprobs))
    return answers


SOURCE = Source(
    patterns=("*.jsonl",),
    licence="CC BY-SA 3.0",
    address="https://github.com/google-research-datasets/boolean-questions",
    sha256={"dev.jsonl": "ebc29ea3808c5c611672384b3de56e83349fe38fc1fe876fd29b674d81d0a80a"},
)
SET = QuestionSet("BoolQ", SOURCE, "logprobs", read, answer)
