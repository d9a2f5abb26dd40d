"""What a recording is shown as: tables, text, JSON, a trace."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from atb_models.ops.cost import Cost
from atb_models.plan.chips import Chip, find_chip, load_chips
from atb_models.plan.roofline import Arithmetic
from atb_models.profiler.chrome import LANES, trace_events
from atb_models.profiler.profile import Call, CallKey, Least, Profile, StepRecord, Total
from atb_models.profiler.report import ProfiledRun, to_json
from atb_models.profiler.table import by_module, by_operation, folded
from atb_models.profiler.text import lines

MS = 1_000_000
RUN = ProfiledRun("folder", "fp16", "cpu, 1 thread", 0, 1, waits=False, chip=None)
# op, module, backend, ms from, ms to, cost, ms at the roofline, what binds
CALLS = (
    ("Linear", "layers.0.attn.qkv", "cpu", 1, 5, Cost(8e6, 3e6, 1e6), 3.0, "compute"),
    ("Rope", "layers.0.attn", "reference", 5, 7, Cost(0, 1e6, 1e6), 0.5, "memory"),
    ("Linear", "layers.1.attn.qkv", "cpu", 7, 10, Cost(8e6, 3e6, 1e6), 3.0, "memory"),
    ("AllReduce", "layers.1", "reference", 10, 12, Cost(1e6, 1e6, 1e6, 4e6), 1.0, "link"),
    ("RopeTables", "", "reference", 12, 12, Cost(), 0.0, "memory"),
)


def profile(*, priced: bool = True) -> Profile:
    """One step from 0.5 to 15 ms of 20, of which 1 ms is the recorder's."""
    calls = tuple(
        Call(op, module, backend, start * MS, end * MS, cost, least if priced else None, ((4, 2), (2,)))
        for op, module, backend, start, end, cost, ms, limit in CALLS
        for least in (Least(ms / 1000, limit),)
    )
    totals: defaultdict[CallKey, Total] = defaultdict(Total)
    for call in calls:
        totals[CallKey("prefill", call.op, call.module, call.backend)].count(call)
    step = StepRecord("prefill", 4, 1, 4, MS // 2, 15 * MS, 11 * MS, MS)
    return Profile(20 * MS, (step,), dict(totals), calls, 1)


@pytest.fixture
def chip() -> Chip:
    return find_chip("H200", load_chips())


def test_split() -> None:
    split = {name: round(1e3 * seconds, 6) for name, seconds in profile().split().items()}
    assert split == {"operations": 11, "between operations": 2.5, "outside the model": 5.5, "recorder": 1}


def test_operations_that_lost_most_come_first() -> None:
    rows = by_operation(profile())
    assert [row.name for row in rows] == ["Rope", "Linear", "AllReduce", "RopeTables"]
    assert [row.name for row in by_operation(profile(priced=False))] == ["Linear", "Rope", "AllReduce", "RopeTables"]


def test_figures_of_a_row() -> None:
    rows = {row.name: row for row in by_operation(profile())}
    linear = rows["Linear"]  # 16 MFLOP and 8 MB in 7 ms, 6 at the roofline
    assert (linear.total.calls, linear.backend) == (2, "cpu")
    assert linear.flops_per_s == pytest.approx(16e6 / 0.007)
    assert linear.bytes_per_s == pytest.approx(8e6 / 0.007)
    assert linear.roofline_share == pytest.approx(6 / 7)
    assert linear.total.lost_s == pytest.approx(0.001)
    assert rows["AllReduce"].bytes_per_s == pytest.approx(4e6 / 0.002)  # what is sent
    assert rows["RopeTables"].flops_per_s is None and rows["RopeTables"].roofline_share is None


def test_modules_are_folded_over_layers() -> None:
    rows = {row.name: row.total.calls for row in by_module(profile())}
    assert rows == {"layers.*.attn": 1, "layers.*.attn.qkv": 2, "layers.*": 1, "(model)": 1}
    assert (folded("layers.12.mlp.experts"), folded("norm"), folded("")) == ("layers.*.mlp.experts", "norm", "(model)")


def test_text_has_every_part(chip: Chip) -> None:
    text = "\n".join(lines(profile(), replace(RUN, chip=chip, ranks=2)))
    assert text.startswith("profile of rank 0 of 2: folder, fp16 on cpu, 1 thread\n  roofline   H200\n")
    assert chip.sources["bandwidth_gb_s"] in text and chip.sources["latency_us"] in text
    assert "prefill    1 step, 4 tokens: 13.50 ms, 13.50 ms a step" in text
    cells = [line.split() for line in text.splitlines()]
    assert ["between", "operations", "2.50", "ms", "12.5", "%"] in cells
    assert ["Linear", "2", "7.00", "35.0", "2.29", "1.14", "85.7", "compute", "50%", "1.00", "cpu"] in cells
    assert ["all", "5", "11.00", "55.0", "1.55", "1.27", "68.2", "memory", "47%", "3.50"] in cells
    assert "the wait for the slowest rank" in text and "above 100 %" not in text
    assert all(line.isascii() for line in text.splitlines())


def test_text_without_a_chip_says_how_to_choose_one() -> None:
    text = "\n".join(lines(profile(priced=False), replace(RUN, waits=True, no_chip="it is unknown")))
    assert "  roofline   none: it is unknown; choose a chip with --chip NAME\n" in text
    assert "roofline %" in text and "each operation was waited for" in text
    cells = [line.split() for line in text.splitlines()]
    assert ["Linear", "2", "7.00", "35.0", "2.29", "1.14", "-", "-", "-", "cpu"] in cells


def test_text_explains_more_than_the_roofline_and_a_short_trace(chip: Chip) -> None:
    seen = profile()
    seen.totals[CallKey("prefill", "Linear", "layers.1.attn.qkv", "cpu")].least_s = {"memory": 0.0005}
    seen.totals[CallKey("prefill", "Linear", "layers.0.attn.qkv", "cpu")].least_s = {"memory": 0.0035}
    seen.totals[CallKey("prefill", "Rope", "layers.0.attn", "reference")].least_s = {"memory": 0.0021}
    assert sorted(row.roofline_share or 0 for row in by_operation(seen))[-1] == pytest.approx(1.05)
    text = "\n".join(lines(replace(seen, traced_steps=0), replace(RUN, chip=chip)))
    assert "above 100 %" in text and "first 0 of 1 steps" in text


def test_long_module_table_ends_with_the_rest() -> None:
    seen = profile()
    seen.totals.update({CallKey("decode", "Add", f"m{i}", "cpu"): Total(1, i * MS) for i in range(30)})
    text = "\n".join(lines(seen, RUN)).split("module ")[1]
    names = [line.split("  ")[0] for line in text.splitlines()[1:]]
    assert names[15:18] == ["the rest (19)", "all", ""]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9e-5, "<0.0001"), (0.000123, "0.000123"), (0.00456, "0.00456"), (0.0999, "0.0999"), (1, "1.00"),
     (85.714, "85.7"), (203.4, "203"), (1979000, "1979000")],
)  # fmt: skip
def test_small_figures_keep_three_digits(value: float, text: str) -> None:
    seen = profile()
    seen.totals[CallKey("prefill", "Rope", "layers.0.attn", "reference")].traffic = value * 0.002e9  # in 2 ms
    rope = next(line.split() for line in lines(seen, RUN) if line.startswith("Rope "))
    assert rope[5] == text


def test_a_peak_that_the_table_has_not_is_shown_as_it_is_priced(chip: Chip) -> None:
    run = replace(RUN, chip=replace(chip, fp16_tflops=None, bf16_tflops=50, fp32_tflops=2.5))
    text = [line.split() for line in lines(profile(), run)]
    assert ["fp16", "50000", "GFLOP/s", *"no figure: priced at the chip's fastest rate, an upper bound".split()] in text
    assert ["fp32", "2500", "GFLOP/s", *chip.sources["fp32_tflops"].split()] in text
    price = run.price()
    assert price is not None and price(Cost(50e12), Arithmetic(torch.float16, torch.float16)).total == pytest.approx(1)


def test_json(chip: Chip) -> None:
    content = json.loads(json.dumps(to_json(profile(), replace(RUN, chip=chip))))
    assert content["wall_s"] == 0.02 and sum(content["split_s"].values()) == pytest.approx(0.02)
    assert content["chip"]["name"] == "H200" and content["model"] == "folder"
    assert [step["kind"] for step in content["steps"]] == ["prefill"]
    for table in ("operations", "modules", "calls"):
        assert sum(row["calls"] for row in content[table]) == 5
        assert sum(row["time_s"] for row in content[table]) == pytest.approx(0.011)
    assert content["operations"][0]["name"] == "Rope"
    linear = next(row for row in content["operations"] if row["name"] == "Linear")
    assert linear["roofline_s_by_limit"] == {"compute": 0.003, "memory": 0.003} and linear["roofline_s"] == 0.006


def check_trace(events: list[dict[str, Any]]) -> None:
    """As the viewers need it: complete events, and on each thread one lies inside another or beside it."""
    threads = defaultdict(list)
    for event in events:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and event["name"]
        if event["ph"] == "X":
            assert event["ts"] >= 0 and event["dur"] >= 0
            threads[event["tid"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
        else:
            assert event["ph"] == "M"
    assert len(threads) == len(LANES)
    slack = 1e-3  # us; times are whole nanoseconds
    for spans in threads.values():
        open_spans: list[tuple[float, float, str]] = []
        for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
            while open_spans and open_spans[-1][1] <= start + slack:
                open_spans.pop()
            assert not open_spans or end <= open_spans[-1][1] + slack, name
            open_spans.append((start, end, name))
    for inner, outer in ((1, 0), (2, 0)):
        for start, end, name in threads[inner]:
            assert any(s <= start + slack and end <= e + slack for s, e, _ in threads[outer]), name


def test_trace() -> None:
    events = list(trace_events(profile(), 3))
    check_trace(events)
    assert {event["pid"] for event in events} == {3}
    modules = {event["name"]: (event["ts"], event["dur"]) for event in events if event.get("cat") == "modules"}
    assert modules == {
        "layers": (1000, 11000),
        "layers.0": (1000, 6000),
        "layers.0.attn": (1000, 6000),
        "layers.0.attn.qkv": (1000, 4000),
        "layers.1": (7000, 5000),
        "layers.1.attn": (7000, 3000),
        "layers.1.attn.qkv": (7000, 3000),
    }
    (rope,) = (event for event in events if event["name"] == "Rope")
    assert rope["args"] == {
        "module": "layers.0.attn", "backend": "reference", "flops": 0, "bytes": 2e6, "inputs": ["4x2", "2"],
        "roofline %": 25.0, "limit": "memory",
    }  # fmt: skip
