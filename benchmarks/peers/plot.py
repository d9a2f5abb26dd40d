"""Shares of the machine's limits as bars: one panel for each dtype and case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from atb_models.graph.ink import FONTS, GREY, draw_text
from peers.cases import Case, Work
from peers.measure import OURS, Measured
from peers.report import Subject, case_name, number

OURS_FILL, PEER_FILL, TRACK = "#2563eb", "#94a3b8", "#f1f5f9"
PANEL, NAMES, BAR, FIGURES, GAP = 560, 130, 290, 130, 28
ROW, HEAD, TOP, MARGIN = 22, 30, 70, 20


def draw(measured: Sequence[Measured], subject: Subject) -> str:
    """SVG: a column for each dtype, a panel for each case, a bar for each engine. A full bar is the limit."""
    panel = HEAD + ROW * len(measured[0].engines) + GAP // 2
    width = 2 * MARGIN + PANEL * len(measured) + GAP * (len(measured) - 1)
    height = TOP + panel * len(measured[0].cases) + MARGIN
    title = f"Width of {subject.model}, {subject.layers} layers: {subject.processor}, {subject.threads} threads"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{FONTS}">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        draw_text((MARGIN, 28), title, 15, width - 2 * MARGIN, weight="bold"),
        draw_text((MARGIN, 48), f"Level {subject.level}. {LEGEND}", 11, width - 2 * MARGIN, fill=GREY),
    ]
    for column, one in enumerate(measured):
        for place, case in enumerate(one.cases):
            x, y = MARGIN + column * (PANEL + GAP), TOP + place * panel
            parts += [f'<g transform="translate({x} {y})">', *_panel(one, case, subject.work), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


LEGEND = "Bars: share of the read rate (decode) or of the multiply-add peak (prefill). Figures: tokens/s"


def _panel(one: Measured, case: Case, work: Work) -> Iterator[str]:
    yield draw_text((0, 18), f"{one.dtype}, {case_name(case, 'en')}", 13, PANEL, weight="bold")
    for place, engine in enumerate(one.engines):
        y = HEAD + ROW * place
        yield draw_text((0, y + 12), engine, 11, NAMES - 8)
        yield f'<rect x="{NAMES}" y="{y}" width="{BAR}" height="{ROW - 6}" fill="{TRACK}"/>'
        figures = "left out" if engine in one.left_out else "failed"
        if one.has(engine, case):
            share = one.share(engine, case, work)
            fill = OURS_FILL if engine == OURS else PEER_FILL
            yield f'<rect x="{NAMES}" y="{y}" width="{BAR * min(share, 1):.1f}" height="{ROW - 6}" fill="{fill}"/>'
            figures = f"{number(one.rate(engine, case))} ({share:.0%})"
        yield draw_text((NAMES + BAR + 8, y + 12), figures, 11, FIGURES, fill=GREY)
