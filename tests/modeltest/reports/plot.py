"""The plots of a performance run as a PNG file; they need matplotlib, the extra `plot`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atb_models.files import written_whole
from atb_models.wording import install_command
from modeltest.reports.panels import Panel, panels
from modeltest.reports.report_style import LIGHT

logger = logging.getLogger("atb_models.modeltest")
COLUMNS = 3
PANEL_INCHES = (4.6, 3.6)
DOTS_PER_INCH = 120


def plot_if_possible(path: Path, title: str, results: Mapping[str, Any]) -> None:
    """Draw the cases to `path` and print where it is; without matplotlib say how to get it."""
    try:
        import matplotlib
    except ImportError:
        logger.warning(
            "no plot: matplotlib is not installed; %s installs it, `report` needs none", install_command("plot")
        )
        return
    if shown := panels(results["cases"]):
        matplotlib.use("Agg")
        _draw(path, title, results["chip"], shown)
        print(f"plot: {path}")


def _draw(path: Path, title: str, chip: str | None, shown: Sequence[Panel]) -> None:
    from matplotlib.figure import Figure

    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * rows + 0.8), layout="constrained")
    for number, panel in enumerate(shown, 1):
        axes = figure.add_subplot(rows, COLUMNS, number)
        _panel(axes, panel)
        if panel.title == shown[0].title:  # the colours of its row
            axes.legend(fontsize=8)
    figure.suptitle(title + (f"; dashed: roofline of {chip}" if chip else ""))
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=DOTS_PER_INCH, format="png")


def _panel(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for line, colour in zip(panel.series, _colours(len(panel.series)), strict=True):
        axes.plot(*_points(line.values), marker="o", markersize=4, color=colour, label=line.label)
        axes.plot(*_points(line.bounds), linestyle="--", linewidth=1, color=colour)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.axis)
    axes.set_xticks(range(len(panel.x)), panel.x, rotation=30 if len(panel.x) > 4 else 0, fontsize=8)
    axes.grid(alpha=0.3)
    if panel.is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)


def _colours(number: int) -> list[str]:
    return [LIGHT[place % len(LIGHT)] for place in range(number)]


def _points(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Places and values of those that are there; a line joins them."""
    there = [(place, value) for place, value in enumerate(values) if value is not None]
    return [place for place, _ in there], [value for _, value in there]
