"""`python -m modeltest report DIR`: all results below a folder as one HTML page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atb_models.errors import ConfigError
from atb_models.files import written_whole
from modeltest.command.language import chinese
from modeltest.record import read_record
from modeltest.reports.compare import ReportParser
from modeltest.reports.report_page import page

logger = logging.getLogger("atb_models.modeltest")
NAME = "report.html"
HELP = {
    "": (
        "Write one HTML page with the tables and plots of all results below a folder; it refers to no other file.",
        "把目录下的全部结果写成一个 HTML 页面（表格与图），不引用任何其他文件。",
    ),
    "folder": ("folder with JSON files of runs, at any depth", "含运行结果 JSON 文件的目录（任意层级）"),
    "output": (f"the page (default: {NAME} in the folder)", f"页面文件（默认：该目录下的 {NAME}）"),
}


def main(argv: Sequence[str]) -> int:
    """Exit status of `report` with these arguments. Raises ConfigError where there is nothing to report."""
    text = {name: both[chinese()] for name, both in HELP.items()}
    parser = ReportParser(prog="modeltest report", description=text[""], allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", type=Path, help=text["folder"])
    parser.add_argument("--output", metavar="FILE", type=Path, help=text["output"])
    args = parser.parse_args(list(argv))
    records = records_below(args.folder)
    target = args.output or args.folder / NAME
    with written_whole(target) as temporary:
        temporary.write_text(page(records), encoding="utf-8")
    print(f"{len(records)} results in {target}")
    return 0


def records_below(folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and content of each record, by name; other JSON files are left out with a warning.

    Raises ConfigError for a folder that is none or has no record.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; name the one with the results, as tests/modeltest/outputs")
    found: list[tuple[str, Mapping[str, Any]]] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            found.append((str(path.relative_to(folder)), read_record(path)))
        except ConfigError as error:
            logger.warning("left out: %s", error)
    if not found:
        raise ConfigError(f"{folder} holds no result of modeltest; run a mode first, or name the folder of its outputs")
    return found
