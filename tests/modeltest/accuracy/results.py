"""What the record says of the answers at one batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modeltest.accuracy import files
from modeltest.accuracy.journal import AnsweredBatch
from modeltest.accuracy.questions import Asked, Question, ScoredAnswer


def results(asked: Asked, size: int, batches: Sequence[AnsweredBatch]) -> dict[str, Any]:
    """The record's part; README.md describes it."""
    answers = [answer for batch in batches for answer in batch.answers]
    rows = files.by_file(asked.questions, answers)
    means = {name: sum(answer.measures[name] for answer in answers) / len(answers) for name in answers[0].measures}
    return {
        "set": asked.set.name,
        "batch_size": size,
        "data": asked.data,
        "scored": asked.set.scored,
        "n": len(answers),
        "correct": rows[0]["correct"],
        "accuracy": rows[0]["value"],
        **means,
        "files": rows,
        "questions": [_in_record(question, answer) for question, answer in zip(asked.questions, answers, strict=True)],
        "seconds": sum(batch.seconds for batch in batches),
    }


def _in_record(question: Question, answer: ScoredAnswer) -> dict[str, Any]:
    """Without what the set has not."""
    entry = {
        "key": answer.key,
        "golden": question.golden,
        "answer": answer.given,
        "correct": answer.correct,
        "text": answer.text,
        "logprobs": answer.logprobs,
        **answer.measures,
    }
    return {name: value for name, value in entry.items() if value is not None}
