"""The mode performance_maxbs: the largest batch whose tokens come within a time, found on one engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from atb_models import LLM
from atb_models.bounds import Batch
from atb_models.errors import CapacityError, ConfigError
from modeltest import environment, places
from modeltest.command.cases import Options, Run
from modeltest.model import open_llm
from modeltest.progress import Bar
from modeltest.reports import tables
from modeltest.speed import load
from modeltest.speed.measure import measure
from modeltest.speed.run import log_case, save

logger = logging.getLogger("atb_models.modeltest")
Case = dict[str, Any]
FOUND: dict[str, Callable[[tables.Case], str]] = {
    "in": lambda found: str(found["in"]),
    "out": lambda found: str(found["out"]),
    "range": lambda found: f"{found['least']} to {found['most']}",
    "limit ms": lambda found: f"{found['limit_ms']:g}",
    "largest batch": lambda found: str(found["largest"] or "none"),
    "bounded by": lambda found: found["bounded_by"],
    "next token ms": lambda found: tables.number(found["decode_ms"], 2),
    "next tokens/s": lambda found: tables.number(found["non_first_throughput"], 1),
}


@dataclass(frozen=True)
class Span:
    """The batch sizes of a pair: those asked for, and the highest that can be run; `bound`: what makes it that."""

    prompt: int
    answer: int
    least: int
    most: int
    highest: int
    bound: str

    @property
    def probes(self) -> int:
        """The most that a search takes."""
        return (self.highest - self.least + 1).bit_length()

    def batch(self, size: int) -> Batch:
        return Batch(self.prompt, self.answer, size)


def run_maxbs(run: Run, options: Options) -> int:
    """Search for each pair -> 0, the exit status. Raises AtbError."""
    ranges, limit_ms = ranges_of(run), run.time_limit_ms
    load.check_options(options)
    assert limit_ms is not None, "the grammar asks for it"
    llm = open_llm(
        run,
        options,
        max_batch_size=max(most for _, most in ranges),
        max_seq_len=max(sum(pair) for pair in run.pairs),
        max_prefill_tokens=load.PREFILL_TOKENS,
    )
    with llm:
        facts = environment.facts(llm)
        folder = places.folder("results", facts, run, options)
        blocks, vocab = llm.metrics()["total_blocks"], load.vocabulary(run, options)
        spans = [span_of(*pair, *sizes, blocks) for pair, sizes in zip(run.pairs, ranges, strict=True)]
        load.warm_up(llm, [span.batch(span.highest) for span in spans], vocab)
        searches = _search_all(llm, spans, vocab, limit_ms, run, options, folder)
    found = [_found(span, probes, limit_ms) for span, probes in zip(spans, searches, strict=True)]
    _write(folder, run, f"batch{min(s.least for s in spans)}_{max(s.most for s in spans)}", found, "final_result")
    print(tables.markdown(FOUND, found))
    results = {"cases": [case for probes in searches for case in probes], "maxbs": found}
    sizes = sorted({size for sizes in ranges for size in sizes})
    save(folder, run, options, facts, results | {"chip": None, "chip_reason": "not in this mode"}, sizes)
    return 0


def ranges_of(run: Run) -> list[tuple[int, int]]:
    """The least and the most batch of each pair. Raises ConfigError where none can be measured."""
    lists = run.batch_sizes if len(run.batch_sizes) > 1 else run.batch_sizes * len(run.pairs)
    for prompt, answer in run.pairs:
        if answer < 2:
            raise ConfigError(f"the pair [{prompt},{answer}] has no token but the first to time; ask for 2 or more")
    return [(least, most) for least, most in lists]


def span_of(prompt: int, answer: int, least: int, most: int, blocks: int) -> Span:
    """With a KV cache of so many blocks. Raises CapacityError where it does not hold even the least batch."""
    held = blocks // load.kv_blocks(Batch(prompt, answer, 1))
    together = load.most_together(prompt, answer)
    highest, bound = min((most, "range"), (held, "KV cache"), (together, "answers"), key=lambda size: size[0])
    if highest < least:
        load.check_batch([prompt] * least, answer)
        raise CapacityError(
            f"the KV cache of {blocks} blocks holds {held} sequences of {prompt} + {answer} tokens, the range begins at"
            f" {least}; lower it, or give the cache more memory with more chips"
        )
    return Span(prompt, answer, least, most, highest, bound)


def _search_all(
    llm: LLM, spans: Sequence[Span], vocab: int, limit_ms: float, run: Run, options: Options, folder: Path
) -> list[list[Case]]:
    """The probes of each span; their csv files are written at once."""

    def probe(span: Span, size: int) -> Case:
        batch = span.batch(size)
        prompts = load.random_prompts(batch, vocab, np.random.default_rng(options.seed))
        measured, _ = measure(llm, partial(llm.generate, prompts, load.greedy(batch.answer)), batch.answer)
        case = measured.case(None)
        log_case(case)
        _write(folder, run, f"{span.prompt}_{span.answer}_batch{size}", tables.rows(run.model, [case]), "result")
        return case

    searches = []
    with Bar(sum(span.probes for span in spans), run.mode) as bar:
        with logging_redirect_tqdm([logging.getLogger("atb_models")]):
            for span in spans:
                cases = search(span, limit_ms, partial(probe, span), bar.update)
                bar.update(span.probes - len(cases))
                name = f"{span.prompt}_{span.answer}_batch{span.least}_{span.most}"
                _write(folder, run, name, tables.rows(run.model, cases), "round_result")
                searches.append(cases)
    return searches


def search(
    span: Span, limit_ms: float, probe: Callable[[int], Case], tick: Callable[[int], None] = lambda probes: None
) -> list[Case]:
    """Halve the sizes again and again: larger ones take longer -> the cases in their order."""
    low, high, cases = span.least, span.highest, list[Case]()
    while low <= high:
        middle = (low + high) // 2
        cases.append(probe(middle))
        if cases[-1]["decode_ms"] <= limit_ms:
            low = middle + 1
        else:
            high = middle - 1
        tick(1)
    return cases


def _found(span: Span, probes: Sequence[Case], limit_ms: float) -> dict[str, Any]:
    """The outcome of a search, as the record has it; without a batch within the limit there are no times."""
    within = [case for case in probes if case["decode_ms"] <= limit_ms]
    best: Case = max(within, key=lambda case: case["batch"], default={})
    bound = span.bound if best.get("batch") == span.highest else "time limit"
    return {
        "in": span.prompt,
        "out": span.answer,
        "least": span.least,
        "most": span.most,
        "limit_ms": limit_ms,
        "largest": best.get("batch"),
        "bounded_by": bound,
        "decode_ms": best.get("decode_ms"),
        "non_first_throughput": best.get("non_first_throughput"),
    }


def _write(folder: Path, run: Run, name: str, table: Sequence[dict[str, Any]], kind: str) -> None:
    path = folder / f"{run.mode}_pa_{name}_tp{run.chips}_{kind}.csv"
    tables.write_csv(path, [{title: "" if cell is None else cell for title, cell in row.items()} for row in table])
    logger.info("%s: %s saved in %s", run.model, kind.replace("_", " "), path)
