"""Two results compared: intervals against published figures and numpy, flips, ratios, the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atb_models.errors import ConfigError
from modeltest.reports.compare import main
from modeltest.reports.intervals import mcnemar, paired_difference, percentile, unpaired_difference, wilson
from tests.harness.results import case, write_accuracy, write_speed

RIGHT, WRONG = True, False


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=37).tolist()
    for percent in (0, 50, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert percentile([3.0], 99) == 3.0


def test_published_intervals() -> None:
    """Newcombe 1998, both papers: of one share (table I), of the difference of two (table II, a)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert unpaired_difference(48, 80, 56, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_mcnemar_counts_coins() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 2**8)
    assert 0 < mcnemar(4000, 5000) < 1e-20


def test_the_paired_interval_covers_the_truth() -> None:
    draws = np.random.default_rng(0).multinomial(100, [0.05, 0.1, 0.85], size=2000)
    inside = [low <= 0.05 <= high for low, high in (paired_difference(a, b, 100) for a, b, _ in draws)]
    assert 0.93 < np.mean(inside) < 0.98


def test_flips_of_the_same_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_accuracy(tmp_path / "a.json", [RIGHT] * 90 + [RIGHT, WRONG, WRONG] + [WRONG] * 7)
    b = write_accuracy(tmp_path / "b.json", [RIGHT] * 90 + [WRONG, RIGHT, RIGHT] + [WRONG] * 7, dtype="bf16")
    assert main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "| dtype | fp16 | bf16 |" in out and "chips" not in out
    assert "| A | 91 | 100 | 0.9100 | [0.8377, 0.9519] |" in out and "| B | 92 | 100 | 0.9200 |" in out
    assert "B - A: +0.0100, 95 % [-0.0331, 0.0527], paired; flipped: 1 right in A only, 2 in B only" in out
    assert "(McNemar p = 1)" in out and "3 answers changed" in out
    flips = [line for line in out.splitlines() if line.startswith("| dev.jsonl")]
    assert flips == [
        "| dev.jsonl:91 | yes | yes | no | 0.2500 | 0.2500 |",
        "| dev.jsonl:92 | yes | no | yes | 0.2500 | 0.2500 |",
        "| dev.jsonl:93 | yes | no | yes | 0.2500 | 0.2500 |",
    ]


def test_quantised_weights_of_a_flag_or_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (tmp_path / f"{name}.json" for name in "abc")
    for path, quantize in ((a, None), (b, "w8a16"), (c, None)):
        write_accuracy(path, [RIGHT, RIGHT, WRONG], quantize=quantize)
    document = json.loads(c.read_text())
    document["environment"]["quantization"] = "w8a16"
    document["results"]["questions"][1]["logprobs"] = {"yes": -0.75, "no": -0.375}
    document["results"]["questions"][2] |= {"logprobs": None}
    c.write_text(json.dumps(document))
    assert main([str(a), str(b)]) == 0
    assert "| quantize |  | w8a16 |" in capsys.readouterr().out.splitlines()
    assert main([str(a), str(c)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| quantize |  | w8a16 |" in lines
    assert "log-probabilities changed by 0.1875 on average and 0.3750 at most, at dev.jsonl:2" in lines
    assert main([str(b), str(c)]) == 0
    assert "quantize" not in capsys.readouterr().out


def test_the_same_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_accuracy(tmp_path / "a.json", [RIGHT, WRONG])
    assert main([str(a), str(a), "--tolerance", "0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("same settings") and "0 answers changed" in out and "| question |" not in out


@pytest.mark.parametrize("change", ["fewer", "data"])
def test_different_questions_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    a, b = (write_accuracy(tmp_path / f"{name}.json", [RIGHT] * 8 + [WRONG] * 2) for name in "ab")
    if change == "fewer":
        write_accuracy(b, [RIGHT] * 9)
    else:
        document = json.loads(b.read_text())
        document["results"]["data"][0]["sha256"] = "cd"
        b.write_text(json.dumps(document))
    assert main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "the questions differ" in out and "McNemar" not in out


def test_tolerance_decides_the_status(tmp_path: Path, modeltest: Callable[..., Any]) -> None:
    a = write_accuracy(tmp_path / "a.json", [RIGHT] * 10)
    b = write_accuracy(tmp_path / "b.json", [RIGHT] * 9 + [WRONG])
    for first, second in ((a, b), (b, a)):
        assert main([str(first), str(second)]) == 0
        assert main([str(first), str(second), "--tolerance", "0.1"]) == 0
        assert main([str(first), str(second), "--tolerance", "0.0999"]) == 1
    ended = modeltest("compare", a, b, "--tolerance", "0.05", status=1)
    assert ended.stdout.splitlines()[-1] == "the accuracies differ by 0.1000, more than 0.05" and not ended.stderr


def test_truthfulqas_other_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_accuracy(tmp_path / f"{name}.json", [RIGHT], set_name="TruthfulQA") for name in "ab"]
    for path, score in zip(paths, (0.4, 0.45), strict=True):
        document = json.loads(path.read_text())
        document["results"]["mc2"] = score
        path.write_text(json.dumps(document))
    main([str(path) for path in paths])
    assert "MC2 0.4000 and 0.4500, B - A: +0.0500" in capsys.readouterr().out


def test_speed_as_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_speed(tmp_path / "a.json", [case(1, 64), case(1, 64, 40.0), case(4, 64), case(1, 8, None)])
    b = write_speed(
        tmp_path / "b.json",
        [{**case(1, 64, 10.0), "first_token_ms": 2.0}, case(1, 64, 10.0), case(1, 8, None), case(2, 64)],
    )
    assert main([str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    ratios = [line for line in lines if line.startswith("| 1 |")]
    assert ratios == [
        "| 1 | 64 | 64 | 0.250 | 0.500 | 0.500 | 1.000 | 2.000 | 1.000 | 1.000 |",
        "| 1 | 64 | 64 | 1.000 | 0.250 | 0.250 | 1.000 | 4.000 | 1.000 | 1.000 |",
        "| 1 | 8 | 8 | 1.000 |  |  | 1.000 |  | 1.000 | 1.000 |",
    ]
    assert lines[-2:] == ["only in A: batch 4 of 64+64", "only in B: batch 2 of 64+64"]


def test_largest_batches_of_two_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose probes may be of different sizes."""
    found = {"in": 64, "out": 64, "limit_ms": 50.0, "bounded_by": "time limit"}
    a = write_speed(
        tmp_path / "a.json", [case(8, 64)], maxbs=[{**found, "largest": 8}, {**found, "out": 1, "largest": 1}]
    )
    b = write_speed(tmp_path / "b.json", [case(12, 64)], maxbs=[{**found, "largest": 12, "bounded_by": "KV cache"}])
    none = write_speed(tmp_path / "c.json", [case(12, 64)], maxbs=[{**found, "largest": None}])
    for second, row in (
        (b, "12 (KV cache, 50 ms allowed) | 1.500 |"),
        (none, "none (time limit, 50 ms allowed) |  |"),
    ):
        assert main([str(a), str(second)]) == 0
        assert f"| 64 | 64 | 8 (time limit, 50 ms allowed) | {row}" in capsys.readouterr().out.splitlines()


def test_variables_that_differ_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_speed(tmp_path / f"{name}.json", [case(1, 64)]) for name in "ab")
    document = json.loads(b.read_text())
    document["environment"]["variables"] = {"OMP_NUM_THREADS": "1"}
    b.write_text(json.dumps(document))
    main([str(a), str(b)])
    assert "| variables OMP_NUM_THREADS |  | 1 |" in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    boolq, speed = write_accuracy(tmp_path / "a.json", [RIGHT]), write_speed(tmp_path / "b.json", [case(1, 64)])
    mmlu = write_accuracy(tmp_path / "m.json", [RIGHT], set_name="MMLU")
    other = write_speed(tmp_path / "o.json", [case(2, 64)])
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**json.loads(speed.read_text()), "results": {}}))
    for words, message in (
        ([boolq, speed], "a.json is of accuracy, .*b.json of performance"),
        ([boolq, mmlu], "a.json is of the set BoolQ, .*m.json of MMLU"),
        ([speed, other], r"no batch is in both results: A has batch 1 of 64\+64; B has batch 2"),
        ([speed, speed, "--tolerance", "0.1"], "--tolerance is of accuracies"),
        ([boolq, boolq, "--tolerance", "2"], "a share from 0 to 1, not '2'"),
        ([boolq, broken], "broken.json is incomplete: its results lack cases"),
        ([boolq, tmp_path / "absent.json"], "absent.json is no file; name the JSON file of a run"),
        ([boolq, tmp_path], "is no file; name the JSON file of a run"),
        ([boolq], "the following arguments are required: B.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            main(list(map(str, words)))
