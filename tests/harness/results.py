"""Records of runs that never were, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeltest.command.cases import Options, Run
from modeltest.record import write_record

RUN = Run("fp16", "full_BoolQ", "deepseek", Path("weights"), 8, ((1,),))
ENVIRONMENT = {"device": {"type": "npu", "name": "Ascend <910>"}, "versions": {"torch": "2.13.0"}, "git": None}


def write_accuracy(
    path: Path, correct: Sequence[bool], *, set_name: str = "BoolQ", quantize: str | None = None, **run: Any
) -> Path:
    """A run in which the questions were answered so. run: fields of Run that differ."""
    questions = [
        {
            "key": f"dev.jsonl:{number}",
            "golden": "yes",
            "answer": "yes" if right else "no",
            "correct": right,
            "logprobs": {"yes": -0.5, "no": -0.75},
        }
        for number, right in enumerate(correct, 1)
    ]
    results = {
        "set": set_name,
        "batch_size": 1,
        "data": [{"file": "dev.jsonl", "sha256": "ab", "rows": len(correct)}],
        "n": len(correct),
        "correct": sum(correct),
        "accuracy": sum(correct) / len(correct),
        "questions": questions,
    }
    write_record(path, "accuracy", Run(**{**vars(RUN), **run}), Options(quantize=quantize), ENVIRONMENT, results)
    return path


def case(batch: int, length: int, decode_ms: float | None = 20.0, *, bound: bool = True) -> dict[str, Any]:
    """A batch of prompts and answers of `length` tokens."""
    return {
        "batch": batch, "in": length, "out": length, "total_s": 1.0, "prefill_all_ms": 10.0 * batch,
        "prefill_avg_ms": 10.0, "first_token_ms": 8.0 * batch, "decode_ms": decode_ms,
        "non_first_throughput": decode_ms and 1e3 * batch / decode_ms, "e2e_throughput": 30.0 * batch,
        "prompt_throughput": 1e2 * length, "decode_steps": length - 1, "peak_memory_bytes": 1 << 30,
        "p50_ms": decode_ms, "p90_ms": decode_ms, "p99_ms": decode_ms,
        "roofline": {"prefill_ms": 1.0 * batch, "decode_ms": 4.0} if bound else None,
        "roofline_share": {"prefill": 0.1, "decode": 0.2} if bound else None,
    }  # fmt: skip


def write_speed(path: Path, cases: Sequence[dict[str, Any]], **more: Any) -> Path:
    """A run of the mode performance. more: results beside the cases."""
    run = Run(**{**vars(RUN), "mode": "performance", "pairs": ((64, 64),)})
    results = {"cases": list(cases), "chip": "H200", "chip_reason": "", **more}
    write_record(path, "performance", run, Options(), ENVIRONMENT, results)
    return path
