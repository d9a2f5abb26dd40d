"""CMMLU: Chinese exam questions of 67 subjects. Li et al. 2023, arXiv:2306.09212."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modeltest.accuracy.asking import choose
from modeltest.accuracy.data import Source
from modeltest.accuracy.questions import LanguageModel, Question, QuestionSet, ScoredAnswer
from modeltest.accuracy.sets.multiple_choice import CUE, LETTERS, CsvLayout
from modeltest.accuracy.sets.multiple_choice import read as read_choices
from modeltest.command.cases import Run

LAYOUT = CsvLayout(("Question", *LETTERS, "Answer"))
WORDS = {letter: letter for letter in LETTERS}


def read(paths: Sequence[Path], run: Run) -> list[Question]:
    return read_choices(paths, run, LAYOUT, lambda shown: shown + CUE)


def answer(model: LanguageModel, questions: Sequence[Question], run: Run) -> list[ScoredAnswer]:
    """The letter whose log-probability is the highest, the first of equal ones."""
    answers = []
    choices = choose(model, [question.prompt for question in questions], WORDS, chat=run.chat)
    for question, choice in zip(questions, choices, strict=True):
        ids = choice.output.prompt_token_ids, choice.output.token_ids
        right = choice.label == question.golden
        answers.append(ScoredAnswer(question.key, choice.label, right, *ids, logprobs=choice.logprobs))
    return answers


SOURCE = Source(
    patterns=("test/*.csv",),
    licence="CC BY-NC 4.0",
    address="https://github.com/haonan-li/CMMLU (data)",
    sha256={},
    subjects=67,
)
SET = QuestionSet("CMMLU", SOURCE, "logprobs", read, answer)
