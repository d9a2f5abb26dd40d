"""Decode and prefill at a real model's width, few layers, random weights, against what this machine can do.

    python benchmarks/width.py --model_path <folder with the model's config.json> [--layers 4] [--dtype fp16]
        [--quantize w8a16]

Decode: the share of the memory bandwidth, measured in the same run by summing 1 GiB, at which one token reads the
weights it needs. Prefill of 256 tokens: its rate over that of torch's own matmul at the same shapes and dtype (a weight
that a step uses once is used once here too, so neither runs from the cache). torch's products are of floats, also where
ours take int8.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from atb_models import LLM, SamplingParams
from atb_models.command.model_flags import dtype_flag, quantize_flag
from atb_models.layers.parameter import fillings
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder
from atb_models.wording import precision

PROMPT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True)
    parser.add_argument("--layers", type=int, default=4)
    dtype_flag(parser)
    quantize_flag(parser)
    parser.add_argument("--tokens", type=int, default=24, help="decode steps that are timed")
    args = parser.parse_args()
    with LLM(
        args.model_path,
        dtype=args.dtype,
        quantize=args.quantize,
        device="cpu",
        load_format="dummy",
        config_overrides={"num_hidden_layers": args.layers},
        max_batch_size=1,
        max_seq_len=2 * PROMPT,
        prefix_cache=False,
    ) as llm:
        bandwidth = read_bandwidth()
        prefill_s, decode_s = step_seconds(llm, args.tokens)
        model, config = llm._runner.model, llm._runner.model_config
        matmul_s = torch_seconds(model, config)
    size = token_bytes(model, config)
    threads = torch.get_num_threads()
    storage = precision(config.run_dtype(args.dtype), args.quantize)
    print(f"{storage}, {args.layers} layers, {threads} threads, read bandwidth {bandwidth / 1e9:.1f} GB/s")
    print(
        f"decode:  {decode_s * 1e3:.1f} ms a token, {size / 1e9:.3f} GB of weights,"
        f" {size / decode_s / bandwidth:.0%} of the bandwidth"
    )
    print(
        f"prefill: {PROMPT / prefill_s:.0f} tokens/s, torch's matmul alone {PROMPT / matmul_s:.0f},"
        f" {matmul_s / prefill_s:.0%} of its rate"
    )


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def read_bandwidth() -> float:
    """Bytes per second at which a sum reads 1 GiB."""
    block = torch.ones(1 << 28, dtype=torch.float32)
    return block.nbytes / median_seconds(block.sum, 5)


def step_seconds(llm: LLM, tokens: int) -> tuple[float, float]:
    """Medians of a prefill step of 256 tokens and of a decode step."""
    vocab = llm._runner.model_config.vocab_size
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(max_tokens=tokens + 1, temperature=0, ignore_eos=True)
    for attempt in range(4):
        if attempt == 1:
            llm.reset_timings()
        llm.generate([torch.randint(0, vocab, (PROMPT,), generator=generator).tolist()], params)
    metrics = llm.metrics()
    return statistics.median(metrics["prefill_step_s"]), statistics.median(metrics["decode_step_s"])


def token_bytes(model: Decoder, config: ModelConfig) -> int:
    """Bytes of the weights that one token needs: all but the embedding, and of the experts only the chosen."""
    total = 0
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            total += parameter.nbytes * config.num_experts_per_tok // config.num_experts
        elif not name.startswith("embed."):
            total += parameter.nbytes
    return total


def torch_seconds(model: Decoder, config: ModelConfig) -> float:
    """Seconds of the bare products of a prefill step by torch, with plain weights of the model's shapes."""
    given = list(products(model, config))
    return median_seconds(lambda: [torch.mm(x, weight.t()) for x, weight in given], 3)


def products(model: Decoder, config: ModelConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Input and weight of each product: every expert gets its even share of rows, the head the last token.

    Weights of one shape are the same tensor: with so many rows their arithmetic counts, not their memory.
    """
    rows_per_expert = max(1, PROMPT * config.num_experts_per_tok // max(1, config.num_experts))
    plain: dict[tuple[int, ...], torch.Tensor] = {}
    for name, filling in fillings(model).items():
        layout = filling.weight.layout
        dtype = model.embed.weight.dtype if layout.quantized else layout.loaded
        if name.startswith("embed.") or len(layout.shape) < 2:
            continue
        rows = rows_per_expert if ".experts." in name else 1 if name.startswith("lm_head.") else PROMPT
        matrices = layout.shape[0] if len(layout.shape) == 3 else 1
        weight = plain.setdefault(layout.shape[-2:], torch.full(layout.shape[-2:], 0.01, dtype=dtype))
        x = torch.full((rows, layout.shape[-1]), 0.01, dtype=dtype)
        yield from ((x, weight) for _ in range(matrices))


if __name__ == "__main__":
    main()
