"""The page of all results: whole, self-contained, and with what the records say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import ConfigError
from modeltest.reports.charts import linear_ticks, logarithmic_ticks, panel_svg
from modeltest.reports.panels import panels
from modeltest.reports.report import main
from tests.harness.results import case, write_accuracy, write_speed

VOID = {"meta", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags close in order; keeps texts and attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID or not (self.get_starttag_text() or "").endswith("/>") and tag == "circle":
            self.open += [] if tag == "meta" else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_accuracy(tmp_path / "deep" / "boolq.json", [True] * 3 + [False])
    write_accuracy(tmp_path / "other.json", [True] * 4, dtype="bf16")
    cases = [case(batch, length) for batch in (1, 4) for length in (64, 32)]
    write_speed(tmp_path / "speed.json", cases)
    found = {"in": 64, "out": 64, "least": 1, "most": 8, "limit_ms": 20.0, "largest": None, "bounded_by": "time limit"}
    write_speed(tmp_path / "maxbs.json", [case(4, 64, bound=False)], maxbs=[found | {"decode_ms": None}], chip=None)
    return tmp_path


def test_a_run_of_quantised_weights_says_so(tmp_path: Path, modeltest: Callable[..., Any]) -> None:
    write_accuracy(tmp_path / "float.json", [True] * 4)
    write_accuracy(tmp_path / "int8.json", [True] * 4, quantize="w8a16")
    assert modeltest("report", tmp_path).returncode == 0
    texts = Page((tmp_path / "report.html").read_text("utf-8")).texts
    assert "fp16" in texts and "fp16, weights as w8a16" in texts


def test_page_from_outside(folder: Path, modeltest: Callable[..., Any]) -> None:
    (folder / "notes.json").write_text("[]")
    broken = json.loads((folder / "speed.json").read_text()) | {"results": {}}
    (folder / "broken.json").write_text(json.dumps(broken))
    ended = modeltest("report", folder)
    assert ended.stdout == f"4 results in {folder / 'report.html'}\n"
    assert re.fullmatch(r".*left out: .*broken.json is incomplete.*\n.*left out: .*notes.json.*\n", ended.stderr)
    text = (folder / "report.html").read_text("utf-8")
    page = Page(text)
    assert "0.7500" in page.texts and "0.3006 to 0.9544" in page.texts and "deep/boolq.json" in page.texts
    assert any("Ascend <910>" in one for one in page.texts)  # escaped in the source
    assert page.texts.count("none") >= 1 and "time limit" in page.texts
    assert page.tags.count("svg") == 1 + 6 + 3 and page.tags.count("details") == 4


def test_nothing_outside_is_referred_to(folder: Path) -> None:
    main([str(folder)])
    text = (folder / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|url\(|@import", text)
    assert not [name for name, _ in Page(text).attributes if name in ("src", "href", "srcset")]
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_output_elsewhere(folder: Path, tmp_path: Path) -> None:
    main([str(folder), "--output", str(tmp_path / "new" / "page.html")])
    assert (tmp_path / "new" / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert not (folder / "report.html").exists()


def test_nothing_to_report(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "holds no result of modeltest"), (tmp_path / "absent", "absent is no folder")):
        with pytest.raises(ConfigError, match=message):
            main([str(folder)])
    assert not list(tmp_path.iterdir())


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert linear_ticks(0, 27.7) == [0, 10, 20, 30]
    assert linear_ticks(0.72, 0.76) == pytest.approx([0.72, 0.73, 0.74, 0.75, 0.76])
    assert linear_ticks(0.999, 1.0) == pytest.approx([0.999, 0.9992, 0.9994, 0.9996, 0.9998, 1.0])
    assert linear_ticks(1.0, 1.0) == pytest.approx([1.0, 1.2])
    assert logarithmic_ticks([3, 90]) == [2, 5, 10, 20, 50, 100]
    assert logarithmic_ticks([0.002, 5000]) == [0.001, 0.01, 0.1, 1, 10, 100, 1000, 10000]


def test_panels_show_each_case_and_its_roofline() -> None:
    cases = [case(batch, length) for batch in (4, 1) for length in (64, 32)][:3] + [case(8, 32, None, bound=False)]
    shown = panels(cases)
    assert [panel.x for panel in shown] == [["32+32", "64+64"]] * 3 + [["1", "4", "8"]] * 3
    first, later, throughput = shown[:3]
    assert [line.label for line in first.series] == ["batch 1", "batch 4", "batch 8"]
    assert [line.values for line in first.series] == [[None, 10.0], [40.0, 40.0], [80.0, None]]
    assert [line.bounds for line in later.series] == [[None, 4.0], [4.0, 4.0], [None, None]]
    assert throughput.series[1].values == [200.0, 200.0] and throughput.series[1].bounds == [1000.0, 1000.0]
    assert first.has_bounds and not panels([case(1, 32, bound=False)])[0].has_bounds
    assert len(panels([case(1, 1, None)])) == 1  # there is a first token only
    svg = panel_svg(first)
    assert svg.count("<circle") == 4 and svg.count("bound") == 2 and json.dumps(svg).isascii()
    assert "<title>batch 4, 64+64: 40</title>" in svg


def test_names_below_an_axis_do_not_run_into_each_other() -> None:
    (first, *_) = panels([case(1, 2 << power) for power in range(12)])
    names = re.findall(r'class="x" x="([0-9.]+)" y="206">([^<]+)<', panel_svg(first))
    assert [name for _, name in names] == ["2+2", "16+16", "128+128", "1024+1024"]
    assert all(float(after) - float(before) > 60 for (before, _), (after, _) in pairwise(names))
    assert re.findall(r'y="206">([^<]+)<', panel_svg(panels([case(1, 64)])[0])) == ["64+64"]
