"""The page of `report`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from itertools import groupby
from typing import Any

from atb_models.wording import counted, precision
from modeltest.record import cache_type, quantization
from modeltest.reports.charts import COLOURS, Dot, dots_svg, panel_svg
from modeltest.reports.intervals import wilson
from modeltest.reports.panels import Panel, panels
from modeltest.reports.report_style import style
from modeltest.reports.tables import CONSOLE

Record = Mapping[str, Any]
Named = tuple[str, Record]
RUN_COLUMNS = ("model", "dtype", "ranks", "device", "created", "file")


def page(records: Sequence[Named]) -> str:
    """A whole HTML document without references to anything outside it."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    parts = [
        "<h1>modeltest</h1>",
        f'<p class="note">{len(records)} results, page written {now}</p>',
        *_accuracy([one for one in records if one[1]["kind"] == "accuracy"]),
        *_speed([one for one in records if one[1]["kind"] == "performance"]),
        *_environments(records),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>modeltest report</title><style>{style()}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _accuracy(records: Sequence[Named]) -> list[str]:
    """A table of all runs, and a plot for each set."""
    if not records:
        return []
    titles = ("set", "accuracy", "95 % interval", "correct", "questions", "batch", *RUN_COLUMNS)
    rows = []
    for name, record in records:
        results = record["results"]
        low, high = wilson(results["correct"], results["n"])
        values = (results["accuracy"], f"{low:.4f} to {high:.4f}", results["correct"], results["n"])
        rows.append([results["set"], f"{values[0]:.4f}", *values[1:], _batches(record), *_run(name, record)])
    ordered = sorted(records, key=lambda one: str(one[1]["results"]["set"]))
    plots = [_dots(name, list(group)) for name, group in groupby(ordered, key=lambda one: one[1]["results"]["set"])]
    return ["<h2>Accuracy</h2>", _table(titles, rows), f'<div class="plots">{"".join(plots)}</div>']


def _dots(name: str, records: Sequence[Named]) -> str:
    dots = []
    for _, record in records:
        correct, n = record["results"]["correct"], record["results"]["n"]
        dots.append(Dot(f"{_label(record)}, batch {_batches(record)}", correct / n, wilson(correct, n)))
    return _figure(f"{name}: accuracy with 95 % interval", dots_svg(name, dots))


def _speed(records: Sequence[Named]) -> list[str]:
    parts = ["<h2>Speed</h2>"] if records else []
    for name, record in records:
        results = record["results"]
        parts.append(f"<h3>{escape(record['run']['mode'])}: {escape(_label(record))}</h3>")
        parts.append(f'<p class="note">{escape(name)}, {escape(record["created"])}{_chip(results)}</p>')
        if "maxbs" in results:
            titles = ("in", "out", "least", "most", "limit_ms", "largest", "bounded_by", "decode_ms")
            parts.append(
                _table(titles, [[_value(found[title]) or "none" for title in titles] for found in results["maxbs"]])
            )
        cells = [[cell(case) for cell in CONSOLE.values()] for case in results["cases"]]
        parts.append(_table(tuple(CONSOLE), cells))
        by_axis = groupby(panels(results["cases"]), key=lambda panel: panel.axis)
        parts += [_panels(list(group)) for _, group in by_axis]
    return parts


def _panels(shown: Sequence[Panel]) -> str:
    swatches = [
        f'<span><i class="s{number % COLOURS}"></i>{escape(line.label)}</span>'
        for number, line in enumerate(shown[0].series)
    ]
    swatches += ['<span><i class="bound"></i>roofline</span>'] if any(panel.has_bounds for panel in shown) else []
    figures = "".join(_figure(panel.title, panel_svg(panel)) for panel in shown)
    return f'<p class="legend">{"".join(swatches)}</p><div class="plots">{figures}</div>'


def _environments(records: Sequence[Named]) -> list[str]:
    """All else that the records say of how they came about."""
    parts = ["<h2>Settings and environment</h2>"]
    for name, record in records:
        of_part = [(part, _items(record[part])) for part in ("run", "options", "environment")]
        rows = [[part, key, _value(value)] for part, items in of_part for key, value in items]
        table = _table(("part", "name", "value"), rows)
        parts.append(f"<details><summary>{escape(name)}</summary>{table}</details>")
    return parts


def _items(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _items(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="table"><table><thead>{line(titles, "th")}</thead><tbody>{body}</tbody></table></div>'


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def _run(name: str, record: Record) -> list[str]:
    run = record["run"]
    return [run["model"], _precision(record), str(run["chips"]), _device(record), record["created"], name]


def _label(record: Record) -> str:
    run = record["run"]
    return f"{run['model']} {_precision(record)}, {counted(run['chips'], 'rank')}, {_device(record)}"


def _precision(record: Record) -> str:
    return precision(record["run"]["dtype"], quantization(record), cache_type(record))


def _device(record: Record) -> str:
    device = record["environment"].get("device")
    return str(device["name"] if isinstance(device, dict) else device)


def _batches(record: Record) -> str:
    return _value(record["results"].get("batch_size"))


def _chip(results: Mapping[str, Any]) -> str:
    return f", roofline of {escape(results['chip'])}" if results.get("chip") else ""


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
