"""ATB_LLM_BENCHMARK_ENABLE: the run's timings, logged and in a csv with MindIE's columns.

Unlike there, the divisor of the time per token is the number of decode steps that were run, not the number asked for:
an answer that ends early does not look faster than it was.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atb_models.files import written_whole

logger = logging.getLogger(__name__)

DEFAULT_FILE = Path("benchmark_result") / "benchmark.csv"
WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class RunTimings:
    """Seconds of every step of one run; a step with any prompt token is a prefill step."""

    batch_size: int  # requests
    input_seq_len: int  # prompt tokens of the first request
    output_seq_len: int  # new tokens asked for
    prefill_s: Sequence[float]
    decode_s: Sequence[float]

    @classmethod
    def of_run(cls, metrics: Mapping[str, Any], batch_size: int, input_len: int, output_len: int) -> RunTimings:
        """From `LLM.metrics()` after a run that began with `reset_timings`."""
        return cls(batch_size, input_len, output_len, tuple(metrics["prefill_step_s"]), tuple(metrics["decode_step_s"]))

    @property
    def prefill_ms(self) -> float:
        return 1e3 * sum(self.prefill_s)

    @property
    def prefill_average_ms(self) -> float:
        return self.prefill_ms / self.batch_size

    @property
    def decode_token_ms(self) -> float:
        """Of one decode step; 0 where there was none."""
        return 1e3 * sum(self.decode_s) / len(self.decode_s) if self.decode_s else 0.0

    @property
    def e2e_ms(self) -> float:
        """All steps, without tokenizing and queueing."""
        return self.prefill_ms + 1e3 * sum(self.decode_s)

    def row(self) -> dict[str, str]:
        """The csv's columns: times in ms, the two lists in seconds."""
        return {
            "batch_size": str(self.batch_size),
            "input_seq_len": str(self.input_seq_len),
            "output_seq_len": str(self.output_seq_len),
            "e2e_time(ms)": f" {self.e2e_ms:.2f}",
            "prefill_time(ms)": f" {self.prefill_ms:.2f}",
            "decoder_token_time(ms)": f" {self.decode_token_ms:.2f}",
            "prefill_count": str(len(self.prefill_s)),
            "prefill_token_times": ",".join(f"{seconds:.6f}" for seconds in self.prefill_s),
            "decode_token_times": ",".join(f"{seconds:.6f}" for seconds in self.decode_s),
            "prefill_average_time(ms)": f" {self.prefill_average_ms:.2f}",
        }


def write_benchmark(timings: RunTimings, path: Path | None) -> None:
    """Log the timings as a line and a table, and write the csv: one heading, one row. None: DEFAULT_FILE."""
    path = path or DEFAULT_FILE
    row = timings.row()
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, row)
        writer.writeheader()
        writer.writerow(row)
    logger.info(
        "Prefill time: %.2fms, Prefill average time: %.2fms, Decode token time: %.2fms, E2E time: %.2fms",
        timings.prefill_ms, timings.prefill_average_ms, timings.decode_token_ms, timings.e2e_ms,
    )  # fmt: skip
    table = {name: value.strip() for name, value in row.items() if not name.endswith("_times")}
    logger.info("---------------performance dumped to %s---------------", path)
    for cells in (table, ["---"] * len(table), table.values()):
        logger.info("| %s |", " | ".join(cells))
