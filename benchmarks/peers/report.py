"""The table of docs/speed.md, in both languages, and where it stands in the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from peers.cases import CONTEXT, NEW, Case, Work
from peers.measure import OURS, Measured
from peers.words import WORDS

FILES = {"en": "speed.md", "zh": "speed.zh.md"}


@dataclass(frozen=True)
class Subject:
    """What was measured, and on what. shape: a key of SHAPES; model: its name; model_layers: of the real model."""

    shape: str
    model: str
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
        words.model.format(
            model=subject.model, layers=subject.layers, of=subject.model_layers, vocabulary=subject.vocabulary
        ),
        words.engines.format(engines=engines),
        words.how.format(context=CONTEXT, new=NEW),
        *([words.int8] if any(torch.int8 in one.products for one in measured) else []),
    ]
    rows = ["| " + " | ".join([*words.head, *first.engines]) + " |", "|" + "---|" * (3 + len(first.engines))]
    rows += [_row(one, case, subject.work, language) for one in measured for case in one.cases]
    told = []
    for title, lines in (words.left_out, _left_out), (words.failures, _failures):
        if found := [f"- {line}" for one in measured for line in lines(one, language)]:
            told += ["", title, "", *found]
    return "\n".join([*(f"- {fact}" for fact in facts), "", *rows, *told]) + "\n"


def _limits(one: Measured, words: str) -> str:
    first, *others = one.products
    peaks = [f"{one.median_flops(first) / 1e9:.0f} GFLOP/s"]
    peaks += [f"{dtype_label(products)} {one.median_flops(products) / 1e9:.0f} GOP/s" for products in others]
    read = one.median_read() / 1e9
    return words.format(dtype=one.dtype, rounds=len(one.rounds), read=read, peaks=", ".join(peaks))


def dtype_label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def case_name(case: Case, language: str) -> str:
    words = WORDS[language]
    return (words.prefill if case.is_prefill else words.decode).format(prompt=case.prompt, sequences=case.sequences)


def _row(one: Measured, case: Case, work: Work, language: str) -> str:
    cells = [one.dtype, case_name(case, language), number(one.limit(work, case))]
    for engine in one.engines:
        if not one.has(engine, case):
            cells.append("-" if engine in one.left_out else WORDS[language].failed)
            continue
        cell = f"{number(one.rate(engine, case))} ({one.share(engine, case, work):.0%})"
        if engine != OURS and not one.failed(OURS, case):
            cell += f", x {one.ratio(engine, case):.2f}"
        cells.append(cell)
    return "| " + " | ".join(cells) + " |"


def _left_out(one: Measured, language: str) -> Iterator[str]:
    for engine, why in one.left_out.items():
        yield f"{one.dtype}, {engine}: {why}"


def _failures(one: Measured, language: str) -> Iterator[str]:
    for (engine, case), why in one.failures.items():
        name = case_name(case, language) if case else WORDS[language].whole
        yield f"{one.dtype}, {engine}, {name}: `{why.replace('`', chr(39))}`"


def number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def marks(shape: str) -> tuple[str, str]:
    """The lines of the files between which the table of a shape stands."""
    command = "benchmarks/peers.py" if shape == "qwen" else f"benchmarks/peers.py --shape {shape}"
    return f"<!-- {command} writes this -->", f"<!-- {command} ends -->"


def check_marks(docs: Path, shape: str) -> None:
    """Raises ValueError where a file has no place for the table, OSError where it cannot be read."""
    for name in FILES.values():
        _place(docs / name, shape)


def write_docs(docs: Path, measured: Sequence[Measured], subject: Subject, picture: str) -> None:
    """Replace what stands between the marks of both files, and the picture. Raises OSError."""
    name_of_picture = "speed.svg" if subject.shape == "qwen" else f"speed-{subject.shape}.svg"
    (docs / name_of_picture).write_text(picture, encoding="utf-8")
    begin, end = marks(subject.shape)
    for language, name in FILES.items():
        before, after = _place(docs / name, subject.shape)
        body = f"{table(measured, subject, language)}\n![{WORDS[language].picture}]({name_of_picture})\n"
        (docs / name).write_text(f"{before}{begin}\n\n{body}\n{end}{after}", encoding="utf-8")


def _place(file: Path, shape: str) -> tuple[str, str]:
    """What stands before and after the marks."""
    begin, end = marks(shape)
    found = re.fullmatch(f"(.*){re.escape(begin)}.*{re.escape(end)}(.*)", file.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{file} has no lines {begin!r} and {end!r}")
    return found.group(1), found.group(2)
