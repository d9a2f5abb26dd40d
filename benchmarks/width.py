"""Decode and prefill at a real model's width, few layers, random weights, against what this machine can do.

    python benchmarks/width.py --model_path <folder with the model's config.json> [--layers 4] [--dtype fp16]
        [--quantize w8a16] [--kv_dtype int8] [--rounds 3]

Each round measures the machine's limits and then times one prompt of 256 tokens and the tokens that follow it. A share
is of the limits of its own round, and each figure is the median of the rounds. Where the CPU library serves, the limits
are those of its own loops (plan/this_cpu.py), else those of torch.

Decode: the bytes of the weights that one token needs over the time of a step, against the read limit. Prefill: the time
that the step's arithmetic takes at the peak of each operation's data types, against the time of the step. Outside the
library: what a decode step spends in Python and torch, before, between and after its native calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter

import torch

from atb_models import LLM, SamplingParams
from atb_models.command.model_flags import dtype_flag, kv_dtype_flag, quantize_flag
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder
from atb_models.models.dtypes import kv_torch_dtype
from atb_models.ops.native.library import Library, active, load
from atb_models.plan.chips import RATES, Chip
from atb_models.plan.this_cpu import measure_cpu
from atb_models.plan.times import Step, StepCosts, Work, price
from atb_models.wording import counted, precision

PROMPT = 256


@dataclass(frozen=True)
class Round:
    """The limits, and medians of the steps that were timed right after them, in seconds."""

    limits: Chip
    prefill_s: float
    decode_s: float

    def decode_share(self, weight_bytes: int) -> float:
        """Of the read limit."""
        return weight_bytes / self.decode_s / (self.limits.bandwidth_gb_s * 1e9)

    def prefill_share(self, works: Sequence[Work]) -> float:
        """Of the peak."""
        return price(works, self.limits, 1).compute / self.prefill_s


def main() -> None:
    args = argument_parser().parse_args()
    with LLM(
        args.model_path,
        dtype=args.dtype,
        quantize=args.quantize,
        kv_dtype=args.kv_dtype,
        device="cpu",
        load_format="dummy",
        config_overrides={"num_hidden_layers": args.layers},
        max_batch_size=1,
        max_seq_len=2 * PROMPT,
        prefix_cache=False,
    ) as llm:
        threads = torch.get_num_threads()
        rounds = timed(llm, args.rounds, args.tokens, lambda: measure_cpu(threads))
        outside_s = seconds_outside_library(llm, args.tokens)
        model, config = llm._runner.model, llm._runner.model_config
    stored = kv_torch_dtype(args.kv_dtype)
    costs = StepCosts(config, model.embed.weight.dtype, 1, args.quantize, stored)
    works = costs.works(Step((PROMPT,), (PROMPT,), 1))
    size = token_bytes(model, config)
    cache = None if stored is None else args.kv_dtype
    storage = precision(config.run_dtype(args.dtype), args.quantize, cache)
    print(f"{storage}, {args.layers} layers, level {active()}, {counted(threads, 'thread')}")
    print(f"limits, medians of {counted(len(rounds), 'round')}: {limits(rounds)}")
    decode_s, prefill_s = median(rounds, attrgetter("decode_s")), median(rounds, attrgetter("prefill_s"))
    print(
        f"decode:  {decode_s * 1e3:.1f} ms a token, {size / 1e9:.3f} GB of weights,"
        f" {median(rounds, lambda one: one.decode_share(size)):.0%} of the read limit"
    )
    if outside_s is not None:
        print(f"outside the library: {outside_s * 1e3:.2f} ms a token, {outside_s / decode_s:.1%} of a decode step")
    print(
        f"prefill: {PROMPT / prefill_s:.0f} tokens/s, {sum(work.cost.flops * work.calls for work in works) / 1e9:.0f}"
        f" GFLOP, {median(rounds, lambda one: one.prefill_share(works)):.0%} of the peak"
    )


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--layers", type=int, default=4)
    dtype_flag(parser)
    quantize_flag(parser)
    kv_dtype_flag(parser)
    parser.add_argument("--tokens", type=int, default=24, help="decode steps that are timed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def timed(llm: LLM, rounds: int, tokens: int, measure: Callable[[], Chip]) -> list[Round]:
    """`rounds` times the limits, then a prompt and `tokens` more. What comes before is not timed."""
    vocab = llm._runner.model_config.vocab_size
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(max_tokens=tokens + 1, temperature=0, ignore_eos=True)

    def prompt() -> list[int]:
        return torch.randint(0, vocab, (PROMPT,), generator=generator).tolist()

    llm.generate([prompt()], params)
    found = []
    for _ in range(rounds):
        chip = measure()
        llm.reset_timings()
        llm.generate([prompt()], params)
        metrics = llm.metrics()
        found.append(Round(chip, *(statistics.median(metrics[name]) for name in ("prefill_step_s", "decode_step_s"))))
    return found


def median(rounds: Sequence[Round], of: Callable[[Round], float]) -> float:
    return statistics.median(map(of, rounds))


def limits(rounds: Sequence[Round]) -> str:
    """The read limit and the peak of each data type that was measured."""
    shown = [f"{median(rounds, lambda one: one.limits.bandwidth_gb_s):.1f} GB/s read"]
    for field in RATES.values():
        peaks = [peak for one in rounds if (peak := getattr(one.limits, field)) is not None]
        if peaks:
            dtype, _, unit = field.partition("_")
            shown.append(f"{dtype} {statistics.median(peaks) * 1e3:.0f} {'GOP' if unit == 'tops' else 'GFLOP'}/s")
    return ", ".join(shown)


def seconds_outside_library(llm: LLM, tokens: int) -> float | None:
    """Median seconds that a decode step spends outside native calls; None where there is no library."""
    level = active().level
    if level is None:
        return None
    params = SamplingParams(max_tokens=tokens + 2, temperature=0, ignore_eos=True)
    with timed_calls(load(level.name)) as seconds:
        ends: list[int] = []
        llm.on_step = lambda *_: ends.append(len(seconds))
        llm.reset_timings()
        llm.generate([[1] * PROMPT], params)
        llm.on_step = None
    steps = llm.metrics()["decode_step_s"]
    native = [sum(seconds[first:end]) for first, end in zip(ends[:-1], ends[1:], strict=True)]
    return statistics.median(step - inside for step, inside in zip(steps, native, strict=True))


@contextmanager
def timed_calls(loaded: Library) -> Iterator[list[float]]:
    """Within it: the seconds of each call of a C function of the library."""
    seconds: list[float] = []

    def timed(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            started = time.perf_counter()
            result = function(*args)
            seconds.append(time.perf_counter() - started)
            return result

        return call

    functions = {name: value for name, value in vars(loaded).items() if hasattr(value, "argtypes")}
    for name, function in functions.items():
        setattr(loaded, name, timed(function))
    try:
        yield seconds
    finally:
        for name, function in functions.items():
            setattr(loaded, name, function)


def token_bytes(model: Decoder, config: ModelConfig) -> int:
    """Bytes of the weights that one token needs: all but the embedding, and of the experts only the chosen."""
    total = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            total += parameter.nbytes * config.num_experts_per_tok // config.num_experts
        elif not name.startswith("embed."):
            total += parameter.nbytes
    return total


if __name__ == "__main__":
    main()
