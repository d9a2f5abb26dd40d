"""The mode performance: what it runs, what it measures, and the files and lines it leaves."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atb_models import LLM, SamplingParams
from atb_models.bounds import Batch, Bound
from atb_models.errors import AtbError, CapacityError, ConfigError
from modeltest.command.cases import Options, Run
from modeltest.speed import load
from modeltest.speed import run as performance
from modeltest.speed.measure import Measured, measure

COLUMNS = [
    "Model", "Batchsize", "In_seq", "Out_seq", "Total time(s)", "Prefill all time(ms)", "Prefill average time(ms)",
    "Non-first token time(ms)", "Non-first token Throughput(Tokens/s)", "Throughput(Tokens/s)",
    "Non-first token Throughput Average(Tokens/s)", "E2E Throughput Average(Tokens/s)",
]  # fmt: skip
KEYS = [
    "batch", "seq_len_in", "seq_len_out", "total_time", "prefill_all_time", "prefill_avg_time", "non_first_token_time",
    "non_first_token_throughput", "e2e_time", "e2e_throughput",
]  # fmt: skip
FOLDER = "results/CPU/performance_test/performance/fp16/deepseek"


@pytest.fixture
def run(demo: Path) -> Run:
    return Run("fp16", "performance", "deepseek", demo, 1, ((1, 2),), pairs=((24, 6), (12, 1)))


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(device="cpu", output_dir=tmp_path / "out", chip="H200", no_plot=True)


@pytest.fixture(scope="module")
def llm(demo: Path) -> Any:
    with LLM(demo, device="cpu", max_batch_size=8, max_prefill_tokens=16, prefix_cache=False) as opened:
        yield opened


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_command_as_printed(demo: Path, tmp_path: Path, modeltest: Callable[..., Any]) -> None:
    """The files and lines of the documented command, on 2 ranks."""
    words = ("pa_fp16", "performance", "[[64,64],[32,32]]", "1", "deepseek", demo, 2)
    flags = ("--output_dir", tmp_path / "out", "--device", "cpu", "--chip", "h200", "--no_plot")
    ended = modeltest(*words, *flags, ATB_LLM_BENCHMARK_ENABLE="1", OMP_NUM_THREADS="1")
    folder = tmp_path / "out" / FOLDER
    stem = "performance_pa_batch1_tp2"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{stem}.json", f"{stem}_formatted_result.csv", f"{stem}_result.csv",
    ]  # fmt: skip
    said = [line for line in ended.stderr.splitlines() if "seq_len_in" in line]
    assert [re.findall(r"(\w+): [0-9.]+", line.rpartition(" : ")[2]) for line in said] == [KEYS] * 2
    assert ended.stderr.rstrip().endswith(f"deepseek batch 1 result saved in {folder / stem}_result.csv")
    table = [line for line in ended.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 4 and len({len(line) for line in table}) == 1
    rows = rows_of(folder / f"{stem}_result.csv")
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [(row["Batchsize"], row["In_seq"], row["Out_seq"]) for row in rows] == [("1", "64", "64"), ("1", "32", "32")]
    assert [bool(row[name]) for row in rows for name in COLUMNS[-2:]] == [False, False, True, True]
    record = json.loads((folder / f"{stem}.json").read_text())
    assert record["kind"] == "performance" and record["results"]["chip"] == "H200"
    assert record["run"]["chips"] == 2 and record["environment"]["device"]["type"] == "cpu"
    for row, case in zip(rows, record["results"]["cases"], strict=True):
        assert float(row["Throughput(Tokens/s)"]) == pytest.approx(case["out"] / case["total_s"], rel=1e-3)
        assert case["decode_steps"] == case["out"] - 1
        assert 0 < case["roofline_share"]["decode"] < 1 and 0 < case["roofline_share"]["prefill"] < 1
        assert case["p50_ms"] <= case["p90_ms"] <= case["p99_ms"] and case["peak_memory_bytes"] > 50 << 20
    averages = [sum(float(row[name]) for row in rows) / 2 for name in COLUMNS[-4:-2]]
    assert [float(rows[1][name]) for name in COLUMNS[-2:]] == pytest.approx(averages, rel=1e-3)
    formatted = (folder / f"{stem}_formatted_result.csv").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in formatted]
    assert len({len(line) for line in formatted}) == 1 and cells[0][9] == "E2E Throughput(Tokens/s)"
    assert cells[1:] == [list(row.values()) for row in rows]


def test_batches_sizes_outside_pairs_inside(
    run: Run, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each at its true size on one engine, after a warm-up; prompts random, repeatable, not shared through a cache."""
    asked: list[tuple[int, int, int]] = []
    prompts: list[list[list[int]]] = []
    opened: list[dict[str, Any]] = []

    def open_llm(*words: Any, **sizes: int) -> LLM:
        opened.append({**sizes, "kv_blocks": words[1].kv_blocks})
        made = real_open(*words, **sizes)
        generate = made.generate

        def watched(texts: list[list[int]], params: SamplingParams) -> Any:
            asked.append((len(texts), len(texts[0]), params.max_tokens or 0))
            prompts.append(texts)
            outputs = generate(texts, params)
            assert all(len(output.token_ids) == params.max_tokens for output in outputs)
            assert all(output.metrics["cached_tokens"] == 0 for output in outputs)
            return outputs

        monkeypatch.setattr(made, "generate", watched)
        return made

    real_open = performance.open_llm
    monkeypatch.setattr(performance, "open_llm", open_llm)
    assert performance.run_performance(run, options) == 0
    assert opened == [{"max_batch_size": 2, "max_seq_len": 30, "max_prefill_tokens": 2048, "kv_blocks": 2}]
    assert asked == [(2, 24, 2), (1, 24, 6), (1, 12, 1), (2, 24, 6), (2, 12, 1)]
    assert prompts[3][0] == prompts[1][0] and prompts[3][0] != prompts[3][1] and prompts[2][0] != prompts[1][0][:12]
    folder = tmp_path / "out" / FOLDER
    last = rows_of(folder / "performance_pa_batch2_tp1_result.csv")[-1]
    assert last["Non-first token time(ms)"] == "" and last["Per-token p99(ms)"] == ""  # an answer of one token
    assert last["Non-first token Throughput Average(Tokens/s)"] and "record: " in capsys.readouterr().out
    record = json.loads((folder / "performance_pa_batch1_2_tp1.json").read_text())
    assert [(case["batch"], case["in"]) for case in record["results"]["cases"]] == [(1, 24), (1, 12), (2, 24), (2, 12)]


def test_lists_for_each_pair(run: Run) -> None:
    nested = replace(run, batch_sizes=((4, 1), (1, 8)))
    assert load.batches_by_size(nested) == {
        4: [Batch(24, 6, 4)], 1: [Batch(24, 6, 1), Batch(12, 1, 1)], 8: [Batch(12, 1, 8)],
    }  # fmt: skip


def test_random_weights_of_a_folder_with_a_config_only(run: Run, options: Options, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.json").write_bytes((run.weight_dir / "config.json").read_bytes())
    dummy = replace(options, load_format="dummy", config_overrides={"num_hidden_layers": 2, "vocab_size": 300})
    one = replace(run, weight_dir=folder, batch_sizes=((1,),), pairs=((8, 2),))
    assert load.vocabulary(one, dummy) == 300
    assert performance.run_performance(one, dummy) == 0


def test_prompts_are_drawn_from_the_whole_vocabulary() -> None:
    drawn = load.random_prompts(Batch(500, 1, 4), 50, np.random.default_rng(1))
    assert [len(ids) for ids in drawn] == [500] * 4 and {token for ids in drawn for token in ids} == set(range(50))


@pytest.mark.parametrize(("size", "prompt", "answer"), [(1, 40, 5), (2, 16, 5), (4, 16, 9), (5, 20, 7), (3, 8, 4)])
def test_decode_steps_are_those_of_the_whole_batch(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, size: int, prompt: int, answer: int
) -> None:
    """Prompts that are read in several steps decode in the meantime; what check_batch accepts decodes together."""
    monkeypatch.setattr(load, "PREFILL_TOKENS", 16)

    def steps(tokens: int) -> int:
        prompts = [[7] * prompt] * size
        measured, _ = measure(llm, lambda: llm.generate(prompts, load.greedy(tokens)), tokens)
        assert (measured.batch, measured.prompt, measured.prompt_tokens) == (size, prompt, size * prompt)
        return len(measured.decode_s)

    later = -(-size * prompt // 16) - -(-prompt // 16)
    assert steps(answer) == answer - 1 - later
    load.check_batch([prompt] * size, later + 2)
    assert steps(later + 2) == 1 and load.most_together(prompt, later + 2) >= size
    assert load.most_together(prompt, later + 1) < size or not later
    if later:
        with pytest.raises(ConfigError, match=f"answers of {later + 1} tokens never decode together; .* {later + 2} "):
            load.check_batch([prompt] * size, later + 1)
        assert steps(later + 1) == 0


def test_measured_times_are_those_of_the_engine(llm: LLM) -> None:
    ticks: list[int] = []
    measured, outputs = measure(llm, lambda: llm.generate([[5] * 10] * 3, load.greedy(4)), 4, ticks.append)
    metrics = llm.metrics()
    assert sum(ticks) == len(metrics["prefill_step_s"]) + len(metrics["decode_step_s"])
    assert measured.prefill_s == sum(metrics["prefill_step_s"])
    assert measured.total_s >= measured.prefill_s + sum(metrics["decode_step_s"])
    assert measured.first_token_s == pytest.approx(sum(one.metrics["first_token_s"] for one in outputs) / 3)
    assert llm.on_step is None


def test_figures_of_a_case() -> None:
    measured = Measured(4, 100, 11, 400, 2.0, 0.5, 0.25, [0.1, 0.2, 0.1, 0.2], 7)
    case = measured.case(Bound(0.05, 0.015))
    assert case["prefill_all_ms"] == 500 and case["prefill_avg_ms"] == 125 and case["first_token_ms"] == 250
    assert case["decode_ms"] == pytest.approx(150) and case["non_first_throughput"] == pytest.approx(4 / 0.15)
    assert case["e2e_throughput"] == 22 and case["prompt_throughput"] == 800
    assert case["p50_ms"] == pytest.approx(150) and case["p99_ms"] == pytest.approx(200)
    assert case["roofline_share"] == pytest.approx({"prefill": 0.1, "decode": 0.1})
    assert measured.case(None)["roofline_share"] is None


def test_what_cannot_be_measured_ends_before_an_engine_is_opened(
    run: Run, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "open_llm", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "file").touch()
    for changed, chosen, message in (
        (replace(run, pairs=((2048, 3),), batch_sizes=((4,),)), options, "answers of 3 tokens never decode together"),
        (run, replace(options, kv_blocks=1), "needs 2 KV blocks of 128 tokens, --kv_blocks says 1"),
        (run, replace(options, output_dir=tmp_path / "file"), "--output_dir"),
        (run, replace(options, prefix_cache=True), "--prefix_cache would spare prompt tokens"),
        (run, replace(options, chip="TPU"), "there is no chip 'TPU'"),
        (run, replace(options, chips_file=str(tmp_path / "absent")), "absent cannot be read"),
    ):
        with pytest.raises(AtbError, match=message):
            performance.run_performance(changed, chosen)


def test_a_config_without_a_vocabulary_is_the_users_mistake(run: Run, options: Options, tmp_path: Path) -> None:
    config = json.loads((run.weight_dir / "config.json").read_text())
    del config["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="vocab_size is missing"):
        performance.run_performance(replace(run, weight_dir=tmp_path), options)


def test_a_shortage_is_said_in_the_words_of_a_command(
    run: Run, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's remedies are flags of run_pa.py, some of which a command does not have."""

    def too_small(*_: Any, **__: Any) -> LLM:
        raise CapacityError("does not fit: try --tp 2")

    monkeypatch.setattr("modeltest.model.LLM", too_small)
    with pytest.raises(CapacityError, match="(?s)try --tp 2\n.*--tp is the word chip_num.* take a smaller batch"):
        performance.run_performance(run, options)


def test_the_block_size_is_the_engines(llm: LLM) -> None:
    assert llm.config.block_size == load.BLOCK_SIZE
