"""What a question set is, what it asks and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from atb_models import RequestOutput, SamplingParams
from modeltest.accuracy.data import Source
from modeltest.command.cases import Options, Run


class LanguageModel(Protocol):
    """What answers: an `LLM`, or a test's stand-in."""

    @property
    def tokenizer(self) -> Any: ...

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[RequestOutput]: ...


@dataclass(frozen=True)
class Question:
    """key: its file and its row there, counted from 1. golden: the right answer. row: what else the scoring needs."""

    key: str
    file: str
    prompt: str
    golden: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredAnswer:
    """The answer to the question `key`, as the journal keeps it: all that results are made from.

    given: what the model answers, comparable to `golden`. text: what it wrote, of sets scored by it.
    logprobs: of each choice, in nats. measures: other scores of the question; results have their means.
    """

    key: str
    given: str
    correct: bool
    input_token_ids: list[int]
    output_token_ids: list[int]
    text: str | None = None
    logprobs: dict[str, float] | None = None
    measures: dict[str, float] = field(default_factory=dict)


def no_check(options: Options) -> None:
    """Of a set that needs nothing but its data."""


@dataclass(frozen=True)
class QuestionSet:
    """read: the questions in the files found. answer: the answers of one batch, in its order.

    scored: by log-probabilities or by the text written. check: raises ConfigError where the set cannot be run here.
    """

    name: str
    source: Source
    scored: Literal["logprobs", "text"]
    read: Callable[[Sequence[Path], Run], list[Question]]
    answer: Callable[[LanguageModel, Sequence[Question], Run], list[ScoredAnswer]]
    check: Callable[[Options], None] = no_check


@dataclass(frozen=True)
class Asked:
    """A set's questions and where they are from: file, sha256 and rows of each data file."""

    set: QuestionSet
    questions: list[Question]
    data: list[dict[str, Any]]
