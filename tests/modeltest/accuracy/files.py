"""The CSV files of a question set."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from atb_models.files import written_whole
from modeltest.accuracy.questions import Question, ScoredAnswer

RESULT_COLUMNS = ("file_name", "value", "correct", "sum")
DEBUG_COLUMNS = (
    "key", "queries", "input_token_ids", "output_token_ids", "test_result", "golden_result", "pass",
)  # fmt: skip


def by_file(questions: Sequence[Question], answers: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    """Accuracy, correct answers and questions: of all as "total", then of each file."""
    groups: dict[str, list[bool]] = {"total": [answer.correct for answer in answers]}
    for question, answer in zip(questions, answers, strict=True):
        groups.setdefault(question.file, []).append(answer.correct)
    return [
        dict(zip(RESULT_COLUMNS, (name, sum(group) / len(group), sum(group), len(group)), strict=True))
        for name, group in groups.items()
    ]


def write_result(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    _write(path, RESULT_COLUMNS, (row.values() for row in rows))


def write_debug(path: Path, questions: Sequence[Question], answers: Sequence[ScoredAnswer]) -> None:
    """test_result: the text of sets scored by it, else the answer."""
    rows = (
        (
            answer.key,
            question.prompt,
            answer.input_token_ids,
            answer.output_token_ids,
            answer.given if answer.text is None else answer.text,
            question.golden,
            answer.correct,
        )
        for question, answer in zip(questions, answers, strict=True)
    )
    _write(path, DEBUG_COLUMNS, rows)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="replace") as out:
        csv.writer(out).writerows([columns, *rows])
