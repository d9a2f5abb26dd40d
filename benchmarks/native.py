"""The CPU library's operations beside what this machine can do at most, and beside torch.

    python benchmarks/native.py [--operation linear] [--level avx2] [--dtype fp16,bf16,int8] [--threads 1] [--repeats 7]

The limits are the library's own loops: bytes read, and multiplications and additions in registers (float32, pairs of
bfloat16). They are measured in turns with the operations, and every figure is a median. With one thread times are the
thread's CPU time, so that a busy machine disturbs them less; with more they are wall time. Weights and caches are
larger than the processor's caches. read: bytes that must be read, over the read limit; compute: FLOPs over the limit of
the instruction that the level uses. int8 weights meet bfloat16 activations; torch has no such operation to compare.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from atb_models.ops import moe
from atb_models.ops.gating import Gating
from atb_models.ops.native.attention import paged_attention
from atb_models.ops.native.experts import experts
from atb_models.ops.native.gating import moe_gating
from atb_models.ops.native.library import Library, active, load
from atb_models.ops.native.linear import linear
from atb_models.ops.native.packing import GateUpPanels, Panels
from atb_models.ops.native.rows import add_rms_norm
from atb_models.ops.weight import Layout, Packing, Weight

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
BEYOND_CACHES = 200 << 20


@dataclass
class Case:
    """`ours(i)` and `torchs(i)` do the same; i selects among copies that do not fit into the caches together."""

    name: str
    ours: Callable[[int], object]
    torchs: Callable[[int], object] | None
    read: float
    flops: float
    dtype: torch.dtype


class Machine:
    """The limits, measured by the library itself."""

    def __init__(self, library: Library, threads: int) -> None:
        self.library, self.threads = library, threads
        self.block = torch.ones(1 << 27, dtype=torch.uint8)
        self.clock = time.thread_time if threads == 1 else time.perf_counter

    def seconds(self, function: Callable[[], object]) -> float:
        started = self.clock()
        function()
        return self.clock() - started

    def read_rate(self) -> float:
        read = self.library.read_memory
        return self.block.nbytes / self.seconds(lambda: read(self.block.data_ptr(), self.block.nbytes, self.threads))

    def compute_rate(self, dtype: torch.dtype) -> float:
        loops = [self.library.multiply_floats]
        if dtype == torch.bfloat16:
            loops.insert(0, self.library.dot_bf16)
        for loop in loops:
            started = self.clock()
            if flops := loop(300_000, self.threads):
                return flops / (self.clock() - started)
        raise AssertionError("every level multiplies floats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", default="linear,experts,attention,small", help="some of these, by commas")
    parser.add_argument("--level", help="of the library; the best unless given")
    parser.add_argument("--dtype", default="fp16,bf16,int8", help="some of fp32, fp16, bf16 and int8, by commas")
    parser.add_argument("--rows", default="1,8,32,256", help="rows of activations, by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, help="divides the widths, for a quick look")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    level = args.level or getattr(active().level, "name", None)
    if level is None:
        parser.error(f"no level of the library: {active()}")
    machine = Machine(load(level), args.threads)
    rows = [int(count) for count in args.rows.split(",")]
    cases = {"linear": linear_cases, "experts": experts_cases, "attention": attention_cases, "small": small_cases}
    for name in args.operation.split(","):
        for dtype in args.dtype.split(","):
            for case in cases[name](machine.library, DTYPES[dtype], rows, args.scale):
                print(f"{level} {dtype} {measure(machine, case, args.repeats)}", flush=True)


def measure(machine: Machine, case: Case, repeats: int) -> str:
    ours, torchs, reads, rates = [], [], [], []
    case.ours(0)
    for i in range(repeats):
        reads.append(machine.read_rate())
        rates.append(machine.compute_rate(case.dtype))
        ours.append(machine.seconds(lambda: case.ours(i)))
        if case.torchs is not None:
            torchs.append(machine.seconds(lambda: case.torchs(i)))
    took, read, rate = map(statistics.median, (ours, reads, rates))
    shares = f"read {case.read / took / read:4.0%} compute {case.flops / took / rate:4.0%}"
    beside = f", torch {statistics.median(torchs) / took:.1f} times that" if torchs else ""
    limits = f"[limits {read / 1e9:.1f} GB/s, {rate / 1e9:.0f} GFLOP/s]"
    return f"{case.name:36s} {took * 1e3:9.3f} ms  {shares}{beside}  {limits}"


def stored(packing: Packing, plain: Tensor) -> Tensor:
    """A weight, or a stack of them, as the loader leaves it."""
    layout = packing.layout(Layout.plain(tuple(plain.shape), plain.dtype))
    weight = Weight(layout, torch.empty(layout.stored, dtype=layout.dtype))
    for unit, matrix in enumerate(plain if plain.dim() == 3 else plain[None]):
        packing.pack(matrix, weight, unit if plain.dim() == 3 else None)
    return weight.data


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-100, 100, shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype).uniform_(-0.03, 0.03)


def activations(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.int8 else dtype


def computed(dtype: torch.dtype) -> torch.dtype:
    """What products are computed in: pairs of bfloat16 only where both are."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def linear_cases(library: Library, dtype: torch.dtype, rows: list[int], scale: int) -> Iterator[Case]:
    for outputs, inputs in ((6144, 2048), (2048, 2048), (102400, 2048)):
        outputs, inputs = outputs // scale, inputs // scale
        size = outputs * inputs * dtype.itemsize
        plains = [numbers((outputs, inputs), dtype) for _ in range(max(1, BEYOND_CACHES // scale**2 // size))]
        weights = [stored(Panels(library), plain) for plain in plains]
        scales = torch.rand(outputs) / 1000 if dtype == torch.int8 else None
        for count in rows:
            x = torch.randn(count, inputs).to(activations(dtype))
            yield Case(
                f"linear {outputs} x {inputs}, {count} rows",
                lambda i, x=x: [linear(library, x, w, outputs, None, scales) for w in weights],
                None if dtype == torch.int8 else lambda i, x=x: [torch.mm(x, plain.t()) for plain in plains],
                len(weights) * size,
                2.0 * len(weights) * count * outputs * inputs,
                computed(dtype),
            )


def experts_cases(library: Library, dtype: torch.dtype, rows: list[int], scale: int) -> Iterator[Case]:
    """DeepSeek-MoE-16B's layer: 64 experts, 6 a token, 2048 -> 2 x 1408 -> 2048."""
    num, top_k, hidden, width = 64, 6, 2048 // scale, 1408 // scale
    plain = numbers((num, 2 * width, hidden), dtype), numbers((num, hidden, width), dtype)
    weights = stored(GateUpPanels(library), plain[0]), stored(Panels(library), plain[1])
    scales = (None, None)
    if dtype == torch.int8:
        scales = torch.rand(num, 2 * width) / 1000, torch.rand(num, hidden) / 1000
    for count in rows:
        x = torch.randn(count, hidden).to(activations(dtype))
        routes = [moe_gating(library, torch.rand(count, num), Gating(top_k)) for _ in range(8)]
        touched = statistics.median(len(chosen.unique()) for _, chosen in routes)

        def ours(i: int, x: Tensor = x, routes: list[tuple[Tensor, Tensor]] = routes) -> Tensor:
            chosen_weights, chosen = routes[i % 8]
            return experts(library, x, chosen, chosen_weights, *weights, width, *scales)

        def torchs(i: int, x: Tensor = x, routes: list[tuple[Tensor, Tensor]] = routes) -> Tensor:
            return moe.moe_experts.reference(x, *map(Weight.plain, plain), *routes[i % 8])

        size = 3 * hidden * width
        yield Case(
            f"experts, {count} tokens, {touched:.0f} of {num}",
            ours,
            None if dtype == torch.int8 else torchs,
            touched * size * dtype.itemsize,
            2.0 * count * top_k * size,
            computed(dtype),
        )


def attention_cases(library: Library, dtype: torch.dtype, rows: list[int], scale: int) -> Iterator[Case]:
    """Decoding with mixed lengths over shuffled blocks, and whole prompts; head dimension and block size 128."""
    if dtype == torch.int8:
        return
    size, dim, blocks = 128, 128, 600 // scale
    for kv_heads, shared in ((16, 1), (4, 8)):
        heads = kv_heads * shared
        k, v = (torch.randn(blocks, size, kv_heads, dim).to(dtype) for _ in range(2))
        mixed = [128, 256, 384, 512, 700, 1024, 1500, 2048], [128 + 61 * i for i in range(32)]
        for queries, lengths in [([1], [2048]), *(([1] * len(m), m) for m in mixed), ([256], [256]), ([1024], [1024])]:
            table = torch.stack([torch.randperm(blocks)[: -(-max(lengths) // size)] for _ in lengths]).int()
            q = torch.randn(sum(queries), heads, dim).to(dtype)
            starts = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
            kv_lens = torch.tensor(lengths, dtype=torch.int32)
            prompt = queries[0] > 1
            pairs = sum(lengths) if not prompt else lengths[0] * (lengths[0] + 1) / 2
            fused = [torch.randn(1, n, lengths[0], dim).to(dtype) for n in (heads, kv_heads, kv_heads)]
            yield Case(
                f"{'prompt' if prompt else 'decoding'}, {heads} over {kv_heads} heads, {len(lengths)} x {max(lengths)}",
                lambda i, q=q, t=table, s=starts, n=kv_lens, k=k, v=v: paged_attention(library, q, k, v, t, s, n, 0.1),
                (
                    lambda i, f=fused: torch.nn.functional.scaled_dot_product_attention(
                        *f, is_causal=True, enable_gqa=True
                    )
                )
                if prompt
                else None,
                2.0 * sum(lengths) * kv_heads * dim * dtype.itemsize,
                4.0 * pairs * heads * dim,
                torch.float32,
            )


def small_cases(library: Library, dtype: torch.dtype, rows: list[int], scale: int) -> Iterator[Case]:
    if dtype == torch.int8:
        return
    width = 2048 // scale
    for count in rows:
        x, residual, weight = (
            torch.randn(count, width).to(dtype),
            torch.randn(count, width).to(dtype),
            torch.ones(width),
        )
        weight = weight.to(dtype)
        yield Case(
            f"add and norm, {count} x {width}",
            lambda i, x=x, r=residual: add_rms_norm(library, x, r, weight, 1e-6),
            lambda i, x=x, r=residual: torch.nn.functional.rms_norm(x + r, weight.shape, weight, 1e-6),
            2.0 * x.nbytes,
            5.0 * x.numel(),
            torch.float32,
        )
        scores = torch.randn(count, 64)
        yield Case(
            f"gating, {count} x 64",
            lambda i, s=scores: moe_gating(library, s, Gating(6)),
            lambda i, s=scores: s.softmax(-1).topk(6),
            scores.nbytes,
            4.0 * scores.numel(),
            torch.float32,
        )


if __name__ == "__main__":
    main()
