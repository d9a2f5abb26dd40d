"""C-Eval: Chinese exam questions of 52 subjects. Huang et al. 2023, arXiv:2305.08322.

The answers to its test part are not published: the questions are those of its validation part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modeltest.accuracy.data import Source
from modeltest.accuracy.questions import Question, QuestionSet
from modeltest.accuracy.sets.multiple_choice import LETTERS, CsvLayout, answer_in_writing
from modeltest.accuracy.sets.multiple_choice import read as read_choices
from modeltest.command.cases import Run

LAYOUT = CsvLayout(("question", *LETTERS, "answer"), suffixes=("_val", "_dev"))


def ask(shown: str) -> str:
    """The prompt of a question without examples."""
    return f"{shown}\n请一步一步思考，最后用“答案是”加上正确选项的字母作答。\n"


def read(paths: Sequence[Path], run: Run) -> list[Question]:
    return read_choices(paths, run, LAYOUT, ask)


SOURCE = Source(
    patterns=("val/*_val.csv",),
    licence="CC BY-NC-SA 4.0",
    address="https://huggingface.co/datasets/ceval/ceval-exam (ceval-exam.zip)",
    sha256={},
    subjects=52,
)
SET = QuestionSet("CEval", SOURCE, "text", read, answer_in_writing)
