"""The mode performance_maxbs: the search against all sizes one by one, what bounds it, its files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from atb_models import LLM
from atb_models.errors import CapacityError, ConfigError
from modeltest.command.cases import Options, Run
from modeltest.command.options import parse
from modeltest.speed import maxbs
from modeltest.speed.maxbs import Span, search, span_of


def test_the_search_finds_what_trying_all_sizes_would() -> None:
    for least, highest in ((1, 1), (1, 2), (3, 20), (1, 64)):
        span = Span(8, 8, least, highest, highest, "range")
        for fitting in range(least - 1, highest + 1):
            cases = search(
                span,
                10.0,
                lambda size, fitting=fitting: {"batch": size, "decode_ms": 10.0 if size <= fitting else 10.1},
            )
            found = maxbs._found(span, cases, 10.0)
            assert found["largest"] == (fitting if fitting >= least else None)
            assert found["bounded_by"] == ("range" if fitting == highest else "time limit")
            assert len(cases) <= span.probes and len({case["batch"] for case in cases}) == len(cases)
        assert span.probes <= (highest - least).bit_length() + 1


@pytest.mark.parametrize(
    ("most", "blocks", "answer", "highest", "bound"),
    [(8, 100, 128, 8, "range"), (8, 10, 128, 5, "KV cache"), (800, 4000, 10, 144, "answers")],
)
def test_what_bounds_the_sizes(most: int, blocks: int, answer: int, highest: int, bound: str) -> None:
    span = span_of(128, answer, 1, most, blocks)
    assert (span.highest, span.bound) == (highest, bound)


def test_a_range_that_cannot_begin() -> None:
    with pytest.raises(
        CapacityError, match=r"cache of 3 blocks holds 1 sequences of 128 \+ 128 tokens, .* begins at 2"
    ):
        span_of(128, 128, 2, 8, 3)
    with pytest.raises(ConfigError, match="answers of 2 tokens never decode together"):
        span_of(2048, 2, 2, 8, 1000)


@pytest.fixture
def run(demo: Path) -> Run:
    pairs = ((24, 4), (12, 4))
    return Run("fp16", "performance_maxbs", "deepseek", demo, 1, ((1, 4), (2, 3)), pairs=pairs, time_limit_ms=1e4)


def test_files_and_one_engine(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[dict[str, Any]] = []
    real_open = maxbs.open_llm

    def open_llm(*words: Any, **sizes: int) -> LLM:
        opened.append(sizes)
        return real_open(*words, **sizes)

    monkeypatch.setattr(maxbs, "open_llm", open_llm)
    options = Options(device="cpu", output_dir=tmp_path, no_plot=True)
    assert maxbs.run_maxbs(run, options) == 0
    assert opened == [{"max_batch_size": 4, "max_seq_len": 28, "max_prefill_tokens": 2048}]
    folder = tmp_path / "results/CPU/performance_test/performance_maxbs/fp16/deepseek"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"performance_maxbs_pa_24_4_batch{size}_tp1_result.csv" for size in (2, 3, 4)]
        + [f"performance_maxbs_pa_12_4_batch{size}_tp1_result.csv" for size in (2, 3)]
        + [
            "performance_maxbs_pa_24_4_batch1_4_tp1_round_result.csv",
            "performance_maxbs_pa_12_4_batch2_3_tp1_round_result.csv",
        ]
        + ["performance_maxbs_pa_batch1_4_tp1_final_result.csv", "performance_maxbs_pa_batch1_2_3_4_tp1.json"]
    )
    with (folder / "performance_maxbs_pa_batch1_4_tp1_final_result.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["in"], row["largest"], row["bounded_by"]) for row in rows] == [
        ("24", "4", "range"),
        ("12", "3", "range"),
    ]
    record = json.loads((folder / "performance_maxbs_pa_batch1_2_3_4_tp1.json").read_text())
    assert [case["batch"] for case in record["results"]["cases"]] == [2, 3, 4, 2, 3]
    assert "| 24 |   4 | 1 to 4 |" in capsys.readouterr().out


def test_a_roofline_that_would_not_be_drawn_is_refused(run: Run) -> None:
    for flag in ("--chip", "--chips_file"):
        with pytest.raises(ConfigError, match=f"{flag} is an option of .*performance_single, not of performance_maxbs"):
            parse([flag, "x"], run)


def test_an_answer_of_one_token_has_nothing_to_time(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"the pair \[8,1\] has no token but the first"):
        maxbs.run_maxbs(Run(**{**vars(run), "pairs": ((8, 1),), "batch_sizes": ((1, 2),)}), Options())
