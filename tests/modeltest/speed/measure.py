"""One batch, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from atb_models import LLM, RequestOutput
from atb_models.bounds import Bound
from modeltest.reports.intervals import percentile
from modeltest.speed.peak import peak_memory, reset_peak_memory

PERCENTS = (50, 90, 99)
TICK_SECONDS = 1.0
Ask = Callable[[], list[RequestOutput]]


@dataclass(frozen=True)
class Measured:
    """Seconds of a batch of requests that all get `answer` tokens.

    prompt: tokens of the longest prompt. total_s: the whole call. prefill_s: of all steps with any prompt token, so
    until the last request has its first token. first_token_s: of a request, on average. decode_s: each step in which
    all requests get one more token; none where the answers are 1 token. peak_bytes: see peak.py.
    """

    batch: int
    prompt: int
    answer: int
    prompt_tokens: int
    total_s: float
    prefill_s: float
    first_token_s: float
    decode_s: Sequence[float]
    peak_bytes: int

    def case(self, bound: Bound | None) -> dict[str, Any]:
        """As the record has it; times in ms, throughputs in tokens/s. Without decode steps what is of them is None."""
        mean_s = sum(self.decode_s) / len(self.decode_s) if self.decode_s else None
        case: dict[str, Any] = {
            "batch": self.batch,
            "in": self.prompt,
            "out": self.answer,
            "total_s": self.total_s,
            "prefill_all_ms": 1e3 * self.prefill_s,
            "prefill_avg_ms": 1e3 * self.prefill_s / self.batch,
            "first_token_ms": 1e3 * self.first_token_s,
            "decode_ms": None if mean_s is None else 1e3 * mean_s,
            "non_first_throughput": None if mean_s is None else self.batch / mean_s,
            "e2e_throughput": self.batch * self.answer / self.total_s,
            "prompt_throughput": self.prompt_tokens / self.prefill_s,
            "decode_steps": len(self.decode_s),
            "peak_memory_bytes": self.peak_bytes,
        }
        for percent in PERCENTS:
            case[f"p{percent}_ms"] = 1e3 * percentile(self.decode_s, percent) if self.decode_s else None
        return case | _against(bound, self.prefill_s, mean_s)


def _against(bound: Bound | None, prefill_s: float, decode_s: float | None) -> dict[str, Any]:
    """The bounds in ms and their shares of the measured times."""
    if bound is None:
        return {"roofline": None, "roofline_share": None}
    return {
        "roofline": {"prefill_ms": 1e3 * bound.prefill_s, "decode_ms": 1e3 * bound.decode_s},
        "roofline_share": {
            "prefill": bound.prefill_s / prefill_s,
            "decode": None if decode_s is None else bound.decode_s / decode_s,
        },
    }


class Meter:
    """Counts the rows of each decode step, and tells `tick` about once a second how many steps have been made."""

    def __init__(self, tick: Callable[[int], None]) -> None:
        self.decode_rows: list[int] = []
        self._tick, self._untold, self._told = tick, 0, time.monotonic()

    def __call__(self, rows: list[Any], logits: Tensor, sampled: list[int]) -> None:
        if not rows[-1].is_prefill:
            self.decode_rows.append(len(rows))
        self._untold += 1
        if time.monotonic() - self._told > TICK_SECONDS:
            self.tell()

    def tell(self) -> None:
        self._tick(self._untold)
        self._untold, self._told = 0, time.monotonic()


def measure(
    llm: LLM, ask: Ask, answer: int, tick: Callable[[int], None] = lambda steps: None
) -> tuple[Measured, list[RequestOutput]]:
    """What `ask` does on `llm`, a call of `generate` for answers of `answer` tokens each; with its outputs.

    tick: called now and then with the number of steps since its last call.
    """
    llm.reset_timings()
    reset_peak_memory(llm.device)
    llm.on_step = meter = Meter(tick)
    try:
        started = time.perf_counter()
        outputs = ask()
        total_s = time.perf_counter() - started
    finally:
        llm.on_step = None
    meter.tell()
    for output in outputs:
        output.raise_for_error()
    metrics, lengths = llm.metrics(), [len(output.prompt_token_ids) for output in outputs]
    seconds = metrics["decode_step_s"]
    rows = meter.decode_rows[len(meter.decode_rows) - len(seconds) :]  # the engine keeps the last so many times
    measured = Measured(
        batch=len(outputs),
        prompt=max(lengths),
        answer=answer,
        prompt_tokens=sum(lengths),
        total_s=total_s,
        prefill_s=sum(metrics["prefill_step_s"]),
        first_token_s=sum(output.metrics["first_token_s"] for output in outputs) / len(outputs),
        decode_s=[step for step, count in zip(seconds, rows, strict=True) if count == len(outputs)],
        peak_bytes=peak_memory(llm.device),
    )
    return measured, outputs
