"""The table of docs/speed.md, in both languages, and where it stands in the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers.cases import CONTEXT, NEW, Case, Work
from peers.measure import OURS, Measured
from peers.words import WORDS

BEGIN, END = "<!-- benchmarks/peers.py writes this -->", "<!-- benchmarks/peers.py ends -->"
PICTURE = "speed.svg"
FILES = {"en": "speed.md", "zh": "speed.zh.md"}


@dataclass(frozen=True)
class Subject:
    """What was measured, and on what. model_layers: of the real model."""

    work: Work
    model_layers: int
    processor: str
    level: str
    threads: int

    @property
    def layers(self) -> int:
        return int(self.work.config["num_hidden_layers"])

    @property
    def vocabulary(self) -> int:
        return int(self.work.config["vocab_size"])


def table(measured: Sequence[Measured], subject: Subject, language: str) -> str:
    """What stands between the marks, without the picture."""
    words = WORDS[language]
    first = measured[0]
    versions = {name: version for one in measured for name, version in one.versions.items()}
    engines = "; ".join(f"{name} {versions[name]}" for name in first.engines if name in versions)
    facts = [
        words.machine.format(processor=subject.processor, threads=subject.threads, level=subject.level),
        *(_limits(one, words.limits) for one in measured),
        words.model.format(layers=subject.layers, of=subject.model_layers, vocabulary=subject.vocabulary),
        words.engines.format(engines=engines),
        words.how.format(context=CONTEXT, new=NEW),
    ]
    rows = ["| " + " | ".join([*words.head, *first.engines]) + " |", "|" + "---|" * (3 + len(first.engines))]
    rows += [_row(one, case, subject.work, language) for one in measured for case in one.cases]
    failures = [f"- {line}" for one in measured for line in _failures(one, language)]
    told = ["", words.failures, "", *failures] if failures else []
    return "\n".join([*(f"- {fact}" for fact in facts), "", *rows, *told]) + "\n"


def _limits(one: Measured, words: str) -> str:
    read, flops = one.median_limits()
    return words.format(dtype=one.dtype, rounds=len(one.rounds), read=read / 1e9, flops=flops / 1e9)


def case_name(case: Case, language: str) -> str:
    words = WORDS[language]
    return (words.prefill if case.is_prefill else words.decode).format(prompt=case.prompt, sequences=case.sequences)


def _row(one: Measured, case: Case, work: Work, language: str) -> str:
    cells = [one.dtype, case_name(case, language), number(one.limit(work, case))]
    for engine in one.engines:
        if one.failed(engine, case):
            cells.append(WORDS[language].failed)
            continue
        cell = f"{number(one.rate(engine, case))} ({one.share(engine, case, work):.0%})"
        if engine != OURS and not one.failed(OURS, case):
            cell += f", x {one.ratio(engine, case):.2f}"
        cells.append(cell)
    return "| " + " | ".join(cells) + " |"


def _failures(one: Measured, language: str) -> Iterator[str]:
    for (engine, case), why in one.failures.items():
        name = case_name(case, language) if case else WORDS[language].whole
        yield f"{one.dtype}, {engine}, {name}: `{why.replace('`', chr(39))}`"


def number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def check_marks(docs: Path) -> None:
    """Raises ValueError where a file has no place for the table, OSError where it cannot be read."""
    for name in FILES.values():
        _place(docs / name)


def write_docs(docs: Path, measured: Sequence[Measured], subject: Subject, picture: str) -> None:
    """Replace what stands between the marks of both files, and the picture. Raises OSError."""
    (docs / PICTURE).write_text(picture, encoding="utf-8")
    for language, name in FILES.items():
        before, after = _place(docs / name)
        body = f"{table(measured, subject, language)}\n![{WORDS[language].picture}]({PICTURE})\n"
        (docs / name).write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")


def _place(file: Path) -> tuple[str, str]:
    """What stands before and after the marks."""
    found = re.fullmatch(f"(.*){re.escape(BEGIN)}.*{re.escape(END)}(.*)", file.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{file} has no lines {BEGIN!r} and {END!r}")
    return found.group(1), found.group(2)
