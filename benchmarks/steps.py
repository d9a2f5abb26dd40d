"""Cost of a step on the embedded checkpoint: decoding on several ranks, and what the host adds at a large batch.

    python benchmarks/steps.py [--tp 8] [--tokens 100]

Prints the median decode step with `tp` ranks and one request, then, at batch 64 on one rank, the median time a step
spends outside the model: scheduling, sampling, detokenising (host) and building the model's input (input).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

from atb_models import LLM, SamplingParams
from atb_models.engine import model_runner

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    step_ms = decode_step_ms(args.tp, args.tokens)
    print(f"{os.cpu_count()} cores, tp {args.tp}, batch 1: decode step median {step_ms:.2f} ms")
    host_ms, input_ms = host_ms_per_step(args.tokens)
    print(
        f"tp 1, batch {BATCH}: outside the model, median {host_ms + input_ms:.2f} ms a step"
        f" (host {host_ms:.2f}, input {input_ms:.2f})"
    )


def decode_step_ms(tp: int, tokens: int) -> float:
    """Median milliseconds of a decode step with one request."""
    with LLM(tp=tp, device="cpu") as llm:
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        llm.generate(["warm up"], SamplingParams(max_tokens=5, ignore_eos=True))
        llm.reset_timings()
        llm.generate(["Who is the CEO of Google?"], params)
        return statistics.median(llm.metrics()["decode_step_s"]) * 1e3


def host_ms_per_step(tokens: int) -> tuple[float, float]:
    """Median milliseconds per decode step at batch 64 (streaming, so that every token is detokenised): host, input."""
    encode, decode = model_runner.encode_step, model_runner.decode_step
    model_runner.encode_step, encode_s = timed(encode)
    model_runner.decode_step, decode_s = timed(decode)
    try:
        with LLM(device="cpu", max_batch_size=BATCH) as llm:
            params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
            host_s: list[float] = []
            llm.on_step = lambda rows, logits, sampled: host_s.append(llm.metrics()["host_s"])
            for _ in llm.generate([f"question {i}" for i in range(BATCH)], params, stream=True):
                pass
    finally:
        model_runner.encode_step, model_runner.decode_step = encode, decode
    host = [after - before for before, after in zip(host_s, host_s[1:], strict=False)]
    half = len(host) // 2
    inputs = [a + b for a, b in zip(encode_s, decode_s, strict=True)]
    return statistics.median(host[half:]) * 1e3, statistics.median(inputs[half:]) * 1e3


def timed(function: Callable) -> tuple[Callable, list[float]]:
    """The function, and the seconds of each of its calls."""
    seconds: list[float] = []

    def wrapper(*args: object) -> object:
        started = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - started)
        return result

    return wrapper, seconds


if __name__ == "__main__":
    main()
