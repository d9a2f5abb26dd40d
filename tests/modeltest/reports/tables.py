"""Cases as the two csv files of a batch size and as a table on the console."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atb_models.files import written_whole

Case = Mapping[str, Any]
MIB = 1 << 20
THROUGHPUT = "Throughput(Tokens/s)"
AVERAGES = {
    "Non-first token Throughput Average(Tokens/s)": "non_first_throughput",
    "E2E Throughput Average(Tokens/s)": "e2e_throughput",
}


def number(value: float | None, digits: int = 3) -> str:
    """Nothing for what there is none of."""
    return "" if value is None else f"{value:.{digits}f}"


def share(case: Case, part: str, digits: int = 4) -> str:
    """Of the roofline, or nothing."""
    return number(case["roofline_share"][part], digits) if case["roofline_share"] else ""


def average(cases: Sequence[Case], name: str) -> float | None:
    """Of the cases that have it."""
    values = [case[name] for case in cases if case[name] is not None]
    return sum(values) / len(values) if values else None


def rows(model: str, cases: Sequence[Case]) -> list[dict[str, str]]:
    """The columns of MindIE's csv, then ours."""
    table = []
    for case in cases:
        ends = case is cases[-1]
        table.append(
            {
                "Model": model,
                "Batchsize": str(case["batch"]),
                "In_seq": str(case["in"]),
                "Out_seq": str(case["out"]),
                "Total time(s)": number(case["total_s"], 4),
                "Prefill all time(ms)": number(case["prefill_all_ms"]),
                "Prefill average time(ms)": number(case["prefill_avg_ms"]),
                "Non-first token time(ms)": number(case["decode_ms"]),
                "Non-first token Throughput(Tokens/s)": number(case["non_first_throughput"]),
                THROUGHPUT: number(case["e2e_throughput"]),
                **{title: number(average(cases, name)) if ends else "" for title, name in AVERAGES.items()},
                "First token time(ms)": number(case["first_token_ms"]),
                "Per-token p50(ms)": number(case["p50_ms"]),
                "Per-token p90(ms)": number(case["p90_ms"]),
                "Per-token p99(ms)": number(case["p99_ms"]),
                "Prompt Throughput(Tokens/s)": number(case["prompt_throughput"]),
                "Rank 0 peak memory(MiB)": number(case["peak_memory_bytes"] / MIB, 1),
                "Prefill share of roofline": share(case, "prefill"),
                "Decode share of roofline": share(case, "decode"),
            }
        )
    return table


def write_csv(path: Path, table: Sequence[Mapping[str, str]]) -> None:
    """A heading and the rows, cells as they are."""
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def write_formatted(path: Path, table: Sequence[Mapping[str, str]]) -> None:
    """The same for the eye: columns padded to one width, `|` between them."""
    names = ["E2E " + name if name == THROUGHPUT else name for name in table[0]]
    lines = [names, *(list(row.values()) for row in table)]
    with written_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in _aligned(lines)), encoding="utf-8")


def markdown(columns: Mapping[str, Callable[[Case], str]], cases: Sequence[Case]) -> str:
    """A table of the cases, a column for each title."""
    cells = [list(columns), *([cell(case) for cell in columns.values()] for case in cases)]
    heading, *body = _aligned(cells)
    rule = "|".join("-" * (len(part) - 1) + ":" for part in heading.split("|"))
    return "\n".join(f"|{line}|" for line in (heading, rule, *body))


CONSOLE: dict[str, Callable[[Case], str]] = {
    "batch": lambda case: str(case["batch"]),
    "in": lambda case: str(case["in"]),
    "out": lambda case: str(case["out"]),
    "first ms": lambda case: number(case["first_token_ms"], 2),
    "next ms": lambda case: number(case["decode_ms"], 2),
    "p50": lambda case: number(case["p50_ms"], 2),
    "p90": lambda case: number(case["p90_ms"], 2),
    "p99": lambda case: number(case["p99_ms"], 2),
    "prompt/s": lambda case: number(case["prompt_throughput"], 1),
    "decode/s": lambda case: number(case["non_first_throughput"], 1),
    "e2e/s": lambda case: number(case["e2e_throughput"], 1),
    "peak MiB": lambda case: number(case["peak_memory_bytes"] / MIB, 0),
    "roofline first": lambda case: share(case, "prefill", 3),
    "roofline next": lambda case: share(case, "decode", 3),
}


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Right-aligned columns with `|` between them."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["|".join(f" {cell:>{width}} " for cell, width in zip(line, widths, strict=True)) for line in lines]
