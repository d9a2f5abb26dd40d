"""`atb-models bench serve`: its numbers against computed ones, and its load against real servers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atb_models import cli
from atb_models.clients.bench_report import LatencyTargets, percentile, summary, table
from atb_models.clients.load import Outcome, arrivals, random_bodies
from tests.server.raw import values
from tests.server.running import Running

BENCH = ["bench", "serve"]


def outcome(due: float, first: float, last: float, gaps: list[float], tokens: int, **more: Any) -> Outcome:
    return Outcome(due, due, first, last, gaps, prompt_tokens=10, tokens=tokens, is_counted=True, **more)


def test_percentiles_are_those_of_numpy() -> None:
    for count in (1, 2, 3, 10, 101):
        sample = sorted(random.Random(count).random() for _ in range(count))
        for percent in (0, 50, 90, 99, 100):
            assert percentile(sample, percent) == pytest.approx(np.percentile(sample, percent))


def test_the_summary() -> None:
    outcomes = [
        outcome(100.0, 100.5, 101.5, [0.5, 0.5], 3),
        outcome(101.0, 101.1, 102.0, [0.9], 10),
        outcome(101.0, 101.3, 101.3, [], 1),
        Outcome(102.0, 102.0, error="status 429: full"),
    ]
    found = summary(outcomes, LatencyTargets(400, 200))
    assert (found["requests"], found["completed"], found["failed"]) == (4, 3, 1)
    assert found["errors"] == {"status 429: full": 1}
    assert (found["duration_s"], found["prompt_tokens"], found["output_tokens"]) == (2.0, 30, 14)
    assert (found["requests_per_s"], found["output_tokens_per_s"], found["total_tokens_per_s"]) == (1.5, 7.0, 22.0)
    assert found["mean_concurrency"] == pytest.approx((1.5 + 1.0 + 0.3) / 2)
    assert found["ttft_ms"]["p50"] == pytest.approx(300) and found["ttft_ms"]["max"] == pytest.approx(500)
    assert found["itl_ms"]["mean"] == pytest.approx(1900 / 3)
    assert found["tpot_ms"]["mean"] == pytest.approx((500 + 100) / 2)
    assert found["e2e_ms"]["max"] == pytest.approx(1500)
    assert found["goodput"]["good"] == 2 and found["goodput"]["share"] == 0.5, "the first came too late"
    assert found["goodput"]["requests_per_s"] == 1.0
    shown = table(found)
    assert "3 of 4 requests" in shown and "1 x error: status 429: full" in shown and "goodput 1.00" in shown


def test_limits_that_are_not_given_hold() -> None:
    one = outcome(0.0, 1.0, 3.0, [2.0], 2)
    cases = [(None, None, True), (999, None, False), (1001, None, True), (None, 1999, False), (1001, 2001, True)]
    assert [LatencyTargets(ttft, itl).hold(one) for ttft, itl, _ in cases] == [good for *_, good in cases]


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(5.0, 4000, seed=3)
    gaps = np.diff(times)
    assert times == arrivals(5.0, 4000, seed=3) != arrivals(5.0, 4000, seed=4) and times[0] == 0
    assert gaps.mean() == pytest.approx(0.2, rel=0.05) and gaps.std() == pytest.approx(0.2, rel=0.1)
    assert (gaps > 0.2).mean() == pytest.approx(math.exp(-1), abs=0.03)


def test_random_prompts_differ_but_for_the_seed() -> None:
    one, again, other = (list(random_bodies(3, 50, 7, seed)) for seed in (1, 1, 2))
    assert one == again != other and one[0]["prompt"] != one[1]["prompt"]
    assert all(len(body["prompt"]) == 50 and body["max_tokens"] == 7 for body in one)


def test_a_fixed_number_of_clients(server: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, before = tmp_path / "result.json", values(server)
    flags = [
        "--concurrency",
        "4",
        "--num_requests",
        "12",
        "--input_len",
        "33",
        "--output_len",
        "9",
        "--api_key",
        "secret",
    ]
    assert cli.main([*BENCH, "--url", server.url, *flags, "--output", str(target)]) == 0
    found, now = json.loads(target.read_text()), values(server)
    assert (found["completed"], found["failed"]) == (12, 0)
    assert (found["prompt_tokens"], found["output_tokens"]) == (12 * 33, 12 * 9)
    for name, counted in (("prompt_tokens_total", 12 * 33), ("generation_tokens_total", 12 * 9)):
        assert now[name] - before[name] == counted
    assert 2 < found["mean_concurrency"] <= 4.01
    assert 0 < found["ttft_ms"]["p50"] <= found["ttft_ms"]["p99"] <= found["e2e_ms"]["max"] <= found["duration_s"] * 1e3
    assert "secret" not in target.read_text() and found["flags"]["concurrency"] == 4
    assert "12 of 12 requests completed" in capsys.readouterr().out


def test_a_rate(server: Running, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    flags = ["--rate", "20", "--num_requests", "20", "--output_len", "2", "--slo_ttft_ms", "60000"]
    assert cli.main([*BENCH, "--url", server.url, *flags, "--output", str(target)]) == 0
    found = json.loads(target.read_text())
    assert found["duration_s"] >= arrivals(20, 20, 0)[-1] and found["goodput"]["good"] == 20


def test_a_dataset_of_chats_and_prompts(server: Running, tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 3},
        {"prompt": "The capital", "max_tokens": 5},
    ]
    dataset, target = tmp_path / "set.jsonl", tmp_path / "result.json"
    dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--concurrency", "1", "--num_requests", "3", "--extra_body", '{"ignore_eos": true, "temperature": 0}']
    assert cli.main([*BENCH, "--url", server.url, "--dataset", str(dataset), *flags, "--output", str(target)]) == 0
    assert json.loads(target.read_text())["output_tokens"] == 3 + 5 + 3


def test_refusals_are_counted(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--url", server.url, "--concurrency", "2", "--num_requests", "3"]
    assert cli.main([*BENCH, *flags, "--extra_body", '{"nonsense": 1}']) == 1
    shown = capsys.readouterr()
    assert "3 x error: status 422: nonsense: is not known here" in shown.out and "no request was answered" in shown.err
    assert cli.main([*BENCH, *flags, "--output_len", "1", "--extra_body", '{"stream_options": null}']) == 0
    assert "3 answers came without usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "either --rate or --concurrency"),
        (["--rate", "1", "--concurrency", "1"], "either --rate or --concurrency"),
        (["--rate", "0"], "--rate: must be a number above 0"),
        (["--concurrency", "1", "--dataset", "x", "--input_len", "1"], "leave out --input_len"),
        (["--concurrency", "1", "--dataset", "/nowhere.jsonl"], "--dataset /nowhere.jsonl cannot be read"),
        (["--concurrency", "1", "--output", "/dev/null/x"], "--output"),
        (["--concurrency", "1", "--extra_body", "[]"], "--extra_body: must be a JSON object"),
        (["--concurrency", "1", "--url", "ftp://x"], "--url 'ftp://x' must be"),
    ],
)
def test_mistakes(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = [] if "--url" in flags else ["--url", "http://127.0.0.1:1"]
    assert cli.main([*BENCH, *flags, *url]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    "text, said", [("", "is empty"), ("[]\n", "line 1 must be"), ('{"a": 1}\n', "line 1 must have")]
)
def test_mistakes_in_a_dataset(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set.jsonl").write_text(text)
    assert cli.main([*BENCH, "--concurrency", "1", "--dataset", str(tmp_path / "set.jsonl")]) == 2
    assert said in capsys.readouterr().err


def test_bench_has_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "walk"]) == 2 and cli.main(["bench"]) == 2
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "serve", "--help"])
    assert ended.value.code == 0 and "--slo_ttft_ms" in capsys.readouterr().out
