"""The mode performance: random prompts of fixed lengths in batches of fixed sizes, on one engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from atb_models import LLM
from atb_models.bounds import Batch
from atb_models.wording import precision
from modeltest import environment, places
from modeltest.command.cases import Options, Run
from modeltest.model import open_llm
from modeltest.progress import Bar
from modeltest.record import write_record
from modeltest.reports import tables
from modeltest.reports.plot import plot_if_possible
from modeltest.speed import load
from modeltest.speed.measure import measure
from modeltest.speed.rooflines import Bounds, bounds

logger = logging.getLogger("atb_models.modeltest")
Case = dict[str, Any]


def run_performance(run: Run, options: Options) -> int:
    """Measure all batches, batch sizes outside and pairs inside -> 0, the exit status. Raises AtbError."""
    by_size = load.batches_by_size(run)
    batches = [batch for listed in by_size.values() for batch in listed]
    for batch in batches:
        load.check_batch([batch.prompt] * batch.size, batch.answer)
    options = replace(options, kv_blocks=load.check_blocks(batches, options))
    load.check_options(options)
    llm = open_llm(
        run,
        options,
        max_batch_size=max(by_size),
        max_seq_len=max(batch.prompt + batch.answer for batch in batches),
        max_prefill_tokens=load.PREFILL_TOKENS,
    )
    with llm:
        facts = environment.facts(llm)
        folder = places.folder("results", facts, run, options)
        found, vocab = bounds(llm, batches, options), load.vocabulary(run, options)
        load.warm_up(llm, batches, vocab)
        cases = _measure_all(llm, by_size, vocab, found, run, options, folder)
    print(tables.markdown(tables.CONSOLE, cases))
    save(folder, run, options, facts, {"cases": cases, **found.facts()}, tuple(by_size))
    return 0


def _measure_all(
    llm: LLM, by_size: Mapping[int, list[Batch]], vocab: int, found: Bounds, run: Run, options: Options, folder: Path
) -> list[Case]:
    """The csv files of a batch size are written as soon as it is done."""
    cases: list[Case] = []
    steps = sum(batch.answer for listed in by_size.values() for batch in listed)
    with Bar(steps, run.mode) as bar, logging_redirect_tqdm([logging.getLogger("atb_models")]):
        for size, listed in by_size.items():
            rng, of_size = np.random.default_rng(options.seed), list[Case]()
            for batch in listed:
                prompts = load.random_prompts(batch, vocab, rng)
                ask = partial(llm.generate, prompts, load.greedy(batch.answer))
                measured, _ = measure(llm, ask, batch.answer, Ticker(bar, batch.answer))
                of_size.append(measured.case(found.of.get(batch)))
                log_case(of_size[-1])
            write_tables(folder, run, size, of_size)
            cases += of_size
    return cases


class Ticker:
    """Moves a bar by `steps` in all, one for each decode step and what is left at the end."""

    def __init__(self, bar: Bar, steps: int) -> None:
        self._bar, self._left = bar, steps

    def __call__(self, steps: int) -> None:
        now = min(steps, self._left)
        self._left -= now
        if now:
            self._bar.update(now)


def log_case(case: Mapping[str, Any]) -> None:
    """In one line with MindIE's keys; times in ms but for total_time and e2e_time, which are the same seconds."""
    batch, prompt, answer = case["batch"], case["in"], case["out"]
    logger.info("Inference completed for batch %d, in %d, out %d", batch, prompt, answer)
    logger.info(
        "batch: %d, seq_len_in: %d, seq_len_out: %d, total_time: %.4f, prefill_all_time: %.3f, prefill_avg_time: %.3f,"
        " non_first_token_time: %s, non_first_token_throughput: %s, e2e_time: %.4f, e2e_throughput: %.3f",
        batch, prompt, answer, case["total_s"], case["prefill_all_ms"], case["prefill_avg_ms"],
        tables.number(case["decode_ms"]) or "none", tables.number(case["non_first_throughput"]) or "none",
        case["total_s"], case["e2e_throughput"],
    )  # fmt: skip


def write_tables(folder: Path, run: Run, size: int, cases: Sequence[Case]) -> None:
    """The two csv files of a batch size; logs its totals and where they are."""
    stem, table = f"performance_pa_batch{size}_tp{run.chips}", tables.rows(run.model, cases)
    path = folder / f"{stem}_result.csv"
    tables.write_csv(path, table)
    tables.write_formatted(folder / f"{stem}_formatted_result.csv", table)
    logger.info(
        "batch %d: %.2f s in all, non-first token throughput average %s, e2e throughput average %s tokens/s",
        size, sum(case["total_s"] for case in cases),
        *(tables.number(tables.average(cases, name)) or "none" for name in tables.AVERAGES.values()),
    )  # fmt: skip
    logger.info("%s batch %d result saved in %s", run.model, size, path)


def save(
    folder: Path,
    run: Run,
    options: Options,
    facts: Mapping[str, Any],
    results: Mapping[str, Any],
    sizes: Sequence[int],
    *,
    plot: bool = True,
) -> None:
    """The record, and beside it the plot, if there is one; prints where they are."""
    path = folder / f"{run.mode}_pa_batch{'_'.join(map(str, sizes))}_tp{run.chips}.json"
    write_record(path, "performance", run, options, dict(facts), dict(results))
    print(f"record: {path}")
    if plot and not options.no_plot:
        cache = None if options.kv_dtype == "auto" else options.kv_dtype
        title = f"{run.model} {precision(run.dtype, facts['quantization'], cache)}, tp {run.chips}"
        plot_if_possible(path.with_suffix(".png"), title, results)
