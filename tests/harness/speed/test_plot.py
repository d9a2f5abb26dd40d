"""The PNG of a performance run, and what is said where matplotlib is not."""

from __future__ import annotations

import logging
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from atb_models.wording import install_command
from modeltest.reports.plot import plot_if_possible
from tests.harness.results import case

RESULTS: dict[str, Any] = {"cases": [case(batch, length) for batch in (1, 4) for length in (32, 64)], "chip": "H200"}
NEEDED = "matplotlib (the extra plot) is not installed"


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING, "atb_models"):
        plot_if_possible(tmp_path / "plot.png", "title", RESULTS)
    assert f"{install_command('plot')} installs it" in caplog.text and not list(tmp_path.iterdir())


def test_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason=NEEDED)
    path = tmp_path / "new" / "plot.png"
    plot_if_possible(path, "deepseek", RESULTS)
    assert capsys.readouterr().out == f"plot: {path}\n"
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert width > 1200 and height > 800


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason=NEEDED)
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), Path(path).touch()))
    plot_if_possible(tmp_path / "plot.png", "deepseek", RESULTS)
    (figure,) = drawn
    assert len(figure.axes) == 6 and "roofline of H200" in figure._suptitle.get_text()
    first = figure.axes[0]
    lines = {line.get_linestyle(): list(line.get_ydata()) for line in first.lines[:2]}
    assert lines == {"-": [10.0, 10.0], "--": [1.0, 1.0]}
    assert [bool(axes.get_legend()) for axes in figure.axes] == [True, False, False] * 2
    plot_if_possible(tmp_path / "plot.png", "deepseek", {**RESULTS, "cases": RESULTS["cases"][:1]})
    (legend, *_) = (axes.get_legend() for axes in drawn[1].axes)
    assert [text.get_text() for text in legend.get_texts()] == ["batch 1"]
