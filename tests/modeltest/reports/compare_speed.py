"""Two speed runs: the ratios of the batches that both have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from atb_models.errors import ConfigError

Record = Mapping[str, Any]
Case = Mapping[str, Any]
Key = tuple[int, int, int, int]
RATIOS = {
    "first token": "first_token_ms",
    "later token": "decode_ms",
    "p99": "p99_ms",
    "prompt tokens/s": "prompt_throughput",
    "decode tokens/s": "non_first_throughput",
    "e2e tokens/s": "e2e_throughput",
    "peak memory": "peak_memory_bytes",
}


def speed_lines(a: Record, b: Record) -> list[str]:
    """What to print. Raises ConfigError where the two share no batch."""
    ours, theirs = _by_key(a), _by_key(b)
    common = [key for key in ours if key in theirs]
    if not common and not _largest_lines(a, b):
        raise ConfigError(f"no batch is in both results: A has {_names(ours)}; B has {_names(theirs)}")
    heading = " | ".join(RATIOS)
    lines = [
        "B / A of times, throughputs and memory:",
        "",
        f"| batch | in | out | {heading} |",
        "|" + "---:|" * (3 + len(RATIOS)),
    ]
    for key in common:
        ratios = (_ratio(ours[key].get(name), theirs[key].get(name)) for name in RATIOS.values())
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {' | '.join(ratios)} |")
    for name, mine, other in (("A", ours, theirs), ("B", theirs, ours)):
        if left := {key: case for key, case in mine.items() if key not in other}:
            lines.append(f"only in {name}: {_names(left)}")
    return [*lines, *_largest_lines(a, b)]


def _largest_lines(a: Record, b: Record) -> list[str]:
    """The outcomes of two performance_maxbs, of the pairs that both have."""
    if not ("maxbs" in a["results"] and "maxbs" in b["results"]):
        return []
    theirs = {(found["in"], found["out"]): found for found in b["results"]["maxbs"]}
    rows = [
        f"| {found['in']} | {found['out']} | {_largest(found)} | {_largest(other)} |"
        f" {_ratio(found['largest'], other['largest'])} |"
        for found in a["results"]["maxbs"]
        if (other := theirs.get((found["in"], found["out"])))
    ]
    return ["", "| in | out | largest batch A | largest batch B | B / A |", "|---:|---:|---|---|---:|", *rows]


def _largest(found: Mapping[str, Any]) -> str:
    size = "none" if found["largest"] is None else found["largest"]
    return f"{size} ({found['bounded_by']}, {found['limit_ms']:g} ms allowed)"


def _by_key(record: Record) -> dict[Key, Case]:
    """By batch, lengths, and how many of the same came before."""
    seen: Counter[tuple[int, int, int]] = Counter()
    found: dict[Key, Case] = {}
    for case in record["results"]["cases"]:
        key = case["batch"], case["in"], case["out"]
        found[(*key, seen[key])] = case
        seen[key] += 1
    return found


def _names(cases: Mapping[Key, Case]) -> str:
    return ", ".join(f"batch {batch} of {prompt}+{answer}" for batch, prompt, answer, _ in cases)


def _ratio(a: float | None, b: float | None) -> str:
    return f"{b / a:.3f}" if a and b is not None else ""
