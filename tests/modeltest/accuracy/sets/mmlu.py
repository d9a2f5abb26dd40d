"""MMLU: exam questions of 57 subjects. Hendrycks et al. 2020, arXiv:2009.03300."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modeltest.accuracy.data import Source
from modeltest.accuracy.questions import Question, QuestionSet
from modeltest.accuracy.sets.multiple_choice import LETTERS, CsvLayout, answer_in_writing
from modeltest.accuracy.sets.multiple_choice import read as read_choices
from modeltest.command.cases import Run

LAYOUT = CsvLayout(("question", *LETTERS, "answer"), suffixes=("_test", "_dev"), headed=False)


def ask(shown: str) -> str:
    """The prompt of a question without examples."""
    return f'{shown}\nThink step by step, then end with "The answer is" and the letter of the right choice.\n'


def read(paths: Sequence[Path], run: Run) -> list[Question]:
    return read_choices(paths, run, LAYOUT, ask)


SOURCE = Source(
    patterns=("test/*_test.csv",),
    licence="MIT",
    address="https://github.com/hendrycks/test (data.tar)",
    sha256={},
    subjects=57,
)
SET = QuestionSet("MMLU", SOURCE, "text", read, answer_in_writing)
