"""What MMLU, C-Eval and CMMLU share: four choices by subject, examples before the question, the letter answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atb_models.errors import ConfigError
from modeltest.accuracy.asking import write
from modeltest.accuracy.data import csv_rows
from modeltest.accuracy.questions import LanguageModel, Question, ScoredAnswer
from modeltest.command.cases import Run

LETTERS = ("A", "B", "C", "D")
CUE = "\nAnswer:"
EXPLAINED_TOKENS, LETTER_TOKENS = 256, 20  # without examples the model may reason first
_NAMED = re.compile(
    r"(?:(?i:answer(?:\s+is)?|choose)|答案[是为]?|选择?)"
    r"(?:[\s:：*(（$]|\\(?:boxed|text)\{|(?i:option|choice|letter)\s)*([A-D])(?![A-Za-z])"
)
_ALONE = re.compile(r"[(（]([A-D])[)）]|(?<![A-Za-z'])([A-D])(?=\s*(?:[.:,。，：]|$))")


@dataclass(frozen=True)
class CsvLayout:
    """How a set's CSV files are laid out. columns: question, the four choices, the right letter.

    suffixes: of the file names behind the subject, of the questions' and the examples' files.
    headed: a first row names the columns.
    """

    columns: tuple[str, str, str, str, str, str]
    examples: str = "dev"
    suffixes: tuple[str, str] = ("", "")
    headed: bool = True


def read(paths: Sequence[Path], run: Run, layout: CsvLayout, ask: Callable[[str], str]) -> list[Question]:
    """The questions of all subjects with `run.shots` examples before each; ask: a question as `shown`
    -> its prompt where it has none.

    Raises ConfigError for an example file that is missing or has too few rows, or a row without a right letter.
    """
    shots = run.shots or 0
    questions = []
    for path in paths:
        subject = path.stem.removesuffix(layout.suffixes[0])
        heading = _heading(subject, _examples(path, subject, shots, layout)) if shots else ""
        for number, row in enumerate(_rows(path, layout), 1):
            prompt = heading + shown(row) + CUE if shots else ask(shown(row))
            questions.append(Question(f"{path.name}:{number}", path.name, prompt, row["answer"]))
    return questions


def shown(row: Mapping[str, str]) -> str:
    """A question with its choices."""
    return "\n".join([row["question"], *(f"{letter}. {row[letter]}" for letter in LETTERS)])


def answer_in_writing(model: LanguageModel, questions: Sequence[Question], run: Run) -> list[ScoredAnswer]:
    """The letter that the model writes: the first thing after examples, else what its reasoning ends with."""
    tokens, letter = (LETTER_TOKENS, first_letter) if run.shots else (EXPLAINED_TOKENS, last_letter)
    answers = []
    outputs = write(model, [question.prompt for question in questions], tokens, chat=run.chat)
    for question, output in zip(questions, outputs, strict=True):
        given = letter(output.text)
        ids = output.prompt_token_ids, output.token_ids
        answers.append(ScoredAnswer(question.key, given, given == question.golden, *ids, text=output.text))
    return answers


def first_letter(text: str) -> str:
    """The first character that is no blank, where it is one of the letters; else ""."""
    return text.strip()[:1] if text.strip()[:1] in LETTERS else ""


def last_letter(text: str) -> str:
    """The letter last named as the answer, else the last that stands alone; "" where there is neither."""
    found = _NAMED.findall(text) or ["".join(groups) for groups in _ALONE.findall(text)]
    return found[-1] if found else ""


def _heading(subject: str, examples: Sequence[Mapping[str, str]]) -> str:
    name = subject.replace("_", " ")
    solved = "".join(f"{shown(row)}{CUE} {row['answer']}\n\n" for row in examples)
    return f"The following are multiple choice questions (with answers) about {name}.\n\n{solved}"


def _examples(path: Path, subject: str, shots: int, layout: CsvLayout) -> list[dict[str, str]]:
    source = path.parent.parent / layout.examples / f"{subject}{layout.suffixes[1]}.csv"
    if not source.is_file():
        raise ConfigError(f"{source} with the examples for {path.name} does not exist; add it, or ask with 0 shots")
    rows = _rows(source, layout)
    if len(rows) < shots:
        raise ConfigError(f"{shots} shots, but {source} has {len(rows)} rows; ask for fewer shots")
    return rows[:shots]


def _rows(path: Path, layout: CsvLayout) -> list[dict[str, str]]:
    """Rows with the columns question, A, B, C, D, answer."""
    names = ("question", *LETTERS, "answer")
    rows = []
    for line, row in csv_rows(path, layout.columns, headed=layout.headed):
        plain = {name: row[column].strip() for name, column in zip(names, layout.columns, strict=True)}
        if plain["answer"] not in LETTERS:
            raise ConfigError(f"{path}, line {line} has the answer {plain['answer']!r}, not one of A, B, C, D")
        rows.append(plain)
    return rows
