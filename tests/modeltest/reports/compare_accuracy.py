"""Two runs over a question set: how far apart, how sure, and which questions flipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atb_models.wording import counted
from modeltest.reports.intervals import Interval, mcnemar, paired_difference, unpaired_difference, wilson

Record = Mapping[str, Any]
Question = Mapping[str, Any]


class Flips(NamedTuple):
    """Questions, of A and of B, that only one of the runs got right."""

    only_a: list[tuple[Question, Question]]
    only_b: list[tuple[Question, Question]]


def accuracy_of(record: Record) -> float:
    """The share of right answers."""
    share: float = record["results"]["correct"] / record["results"]["n"]
    return share


def accuracy_lines(a: Record, b: Record) -> list[str]:
    """What to print."""
    lines = ["| run | correct | questions | accuracy | 95 % interval |", "|---|---:|---:|---:|---|"]
    for name, record in (("A", a), ("B", b)):
        correct, n = record["results"]["correct"], record["results"]["n"]
        lines.append(f"| {name} | {correct} | {n} | {accuracy_of(record):.4f} | {_interval(wilson(correct, n))} |")
    flips = flips_of(a, b)
    difference = f"B - A: {accuracy_of(b) - accuracy_of(a):+.4f}"
    lines += [""] + [f"{name.upper()} {x:.4f} and {y:.4f}, B - A: {y - x:+.4f}" for name, x, y in _means(a, b)]
    if flips is None:
        interval = unpaired_difference(*_counts(a), *_counts(b))
        return [*lines, f"{difference}, 95 % {_interval(interval)}; not question by question: the questions differ"]
    only_a, only_b = len(flips.only_a), len(flips.only_b)
    interval = paired_difference(only_a, only_b, a["results"]["n"])
    lines.append(
        f"{difference}, 95 % {_interval(interval)}, paired; flipped: {only_a} right in A only, {only_b} in B only"
        f" (McNemar p = {mcnemar(only_a, only_b):.3g})"
    )
    changed = _answers_changed(a, b)
    return [*lines, f"{counted(changed, 'answer')} changed in all", *_changes(a, b), *_flip_lines(flips)]


def flips_of(a: Record, b: Record) -> Flips | None:
    """None where the two runs had different questions."""
    pairs = _pairs(a, b)
    if pairs is None:
        return None
    return Flips(
        [(x, y) for x, y in pairs if x["correct"] and not y["correct"]],
        [(x, y) for x, y in pairs if y["correct"] and not x["correct"]],
    )


def _pairs(a: Record, b: Record) -> list[tuple[Question, Question]] | None:
    """Question by question, where the files and the questions asked of them are the same."""
    checksums = [{one["file"]: one["sha256"] for one in record["results"]["data"]} for record in (a, b)]
    ours, theirs = ({one["key"]: one for one in record["results"]["questions"]} for record in (a, b))
    if checksums[0] != checksums[1] or ours.keys() != theirs.keys():
        return None
    return [(one, theirs[key]) for key, one in ours.items()]


def _answers_changed(a: Record, b: Record) -> int:
    return sum(x.get("answer") != y.get("answer") for x, y in _pairs(a, b) or [])


def _changes(a: Record, b: Record) -> list[str]:
    """How far log-probabilities moved, of each question the one that moved most; nothing where there are none."""
    moved = [
        (max(abs(y["logprobs"][choice] - logprob) for choice, logprob in x["logprobs"].items()), x["key"])
        for x, y in _pairs(a, b) or []
        if x.get("logprobs") and x["logprobs"].keys() == (y.get("logprobs") or {}).keys()
    ]
    if not moved:
        return []
    most, key = max(moved)
    mean = sum(change for change, _ in moved) / len(moved)
    return [f"log-probabilities changed by {mean:.4f} on average and {most:.4f} at most, at {key}"]


def _flip_lines(flips: Flips) -> list[str]:
    if not (flips.only_a or flips.only_b):
        return []
    heading = ["", "| question | golden | A | B | margin A | margin B |", "|---|---|---|---|---:|---:|"]
    rows = [
        f"| {_cell(x['key'])} | {_cell(x.get('golden'))} | {_cell(x.get('answer'))} | {_cell(y.get('answer'))}"
        f" | {_margin(x)} | {_margin(y)} |"
        for x, y in (*flips.only_a, *flips.only_b)
    ]
    return [*heading, *rows]


def _margin(question: Question) -> str:
    """Between the two best log-probabilities; nothing where an answer was not chosen by them."""
    values = sorted((question.get("logprobs") or {}).values())
    return f"{values[-1] - values[-2]:.4f}" if len(values) > 1 else ""


def _means(a: Record, b: Record) -> list[tuple[str, float, float]]:
    """Scores beside the accuracy that both have: TruthfulQA's."""
    names: Sequence[str] = [name for name in ("mc2",) if name in a["results"] and name in b["results"]]
    return [(name, a["results"][name], b["results"][name]) for name in names]


def _counts(record: Record) -> tuple[int, int]:
    return record["results"]["correct"], record["results"]["n"]


def _interval(interval: Interval) -> str:
    return f"[{interval.low:.4f}, {interval.high:.4f}]"


def _cell(value: Any) -> str:
    text = " ".join(str("" if value is None else value).split()).replace("|", "\\|")
    return text if len(text) <= 60 else text[:59] + "…"
