"""`python -m modeltest compare A.json B.json`: two runs of the same questions, or of the same batches."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from atb_models.errors import ConfigError
from modeltest.command.language import chinese
from modeltest.record import cache_type, quantization, read_record
from modeltest.reports.compare_accuracy import accuracy_lines, accuracy_of
from modeltest.reports.compare_speed import speed_lines

Record = Mapping[str, Any]
ROUNDING = 1e-9
HELP = {
    "": (
        "Compare two results of modeltest: accuracy with confidence intervals and the questions that flipped, or speed"
        " as ratios.",
        "比较 modeltest 的两个结果：准确率（含置信区间与结论不同的题目），或速度之比。",
    ),
    "a": ("the JSON file of a run", "一次运行的 JSON 文件"),
    "b": ("that of another; differences and ratios are B against A", "另一次运行的 JSON 文件；差与比均为 B 相对 A"),
    "tolerance": (
        "status 1 if the accuracies differ by more than this share, as 0.01 (default: none)",
        "准确率之差超过该值（如 0.01）时以状态 1 结束（默认：无）",
    ),
}
UNEQUAL = 1  # exit status


class ReportParser(argparse.ArgumentParser):
    """argparse whose mistakes are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists the arguments)")


def main(argv: Sequence[str]) -> int:
    """Exit status of `compare` with these arguments, 1 if accuracies differ too much. Raises ConfigError."""
    args = _parser().parse_args(list(argv))
    a, b = read_record(args.a), read_record(args.b)
    _check(a, b, args)
    print("\n".join(_settings(a, b)))
    if a["kind"] == "performance":
        print("\n".join(speed_lines(a, b)))
        return 0
    print("\n".join(accuracy_lines(a, b)))
    return _judge(accuracy_of(b) - accuracy_of(a), args.tolerance)


def _parser() -> ReportParser:
    text = {name: both[chinese()] for name, both in HELP.items()}
    parser = ReportParser(prog="modeltest compare", description=text[""], allow_abbrev=False)
    parser.add_argument("a", metavar="A.json", type=Path, help=text["a"])
    parser.add_argument("b", metavar="B.json", type=Path, help=text["b"])
    parser.add_argument("--tolerance", metavar="X", type=_tolerance, help=text["tolerance"])
    return parser


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, not {text!r}")
    return value


def _check(a: Record, b: Record, args: argparse.Namespace) -> None:
    """Refuse two records that say nothing about each other."""
    if a["kind"] != b["kind"]:
        raise ConfigError(f"{args.a} is of {a['kind']}, {args.b} of {b['kind']}; compare two of a kind")
    if a["kind"] == "performance":
        if args.tolerance is not None:
            raise ConfigError("--tolerance is of accuracies, these are results of performance; leave it out")
        return
    sets = [record["results"]["set"] for record in (a, b)]
    if sets[0] != sets[1]:
        raise ConfigError(f"{args.a} is of the set {sets[0]}, {args.b} of {sets[1]}; compare two of a set")


def _judge(difference: float, tolerance: float | None) -> int:
    if tolerance is None:
        return 0
    beyond = abs(difference) > tolerance + ROUNDING
    print(f"the accuracies differ by {abs(difference):.4f}, {'more than' if beyond else 'within'} {tolerance:g}")
    return UNEQUAL if beyond else 0


def _settings(a: Record, b: Record) -> list[str]:
    """What the two runs do not share."""
    ours, theirs = _flat(a), _flat(b)
    differing = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if not differing:
        return ["same settings and environment", ""]
    rows = [f"| {name} | {_cell(ours.get(name))} | {_cell(theirs.get(name))} |" for name in differing]
    return ["| differs | A | B |", "|---|---|---|", *rows, ""]


def _flat(record: Record) -> dict[str, Any]:
    """Settings by name; of the environment what may change a result."""
    environment = record["environment"]
    shown = {name: environment.get(name) for name in ("device", "versions", "host", "variables", "git")}
    flat = {name: value for part in ("run", "options") for name, value in record[part].items()}
    for part, values in shown.items():
        flat |= {f"{part} {name}": value for name, value in values.items()} if isinstance(values, dict) else {}
    flat["quantize"] = quantization(record)  # the checkpoint's too
    flat["kv_dtype"] = cache_type(record)  # which older results lack
    flat.pop("output_dir", None)
    return flat


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|")
