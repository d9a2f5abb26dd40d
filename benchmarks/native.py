"""The CPU library's operations beside what this machine can do at most, and beside torch.

    python benchmarks/native.py [--operation linear] [--level avx2] [--dtype fp16,w4a16] [--threads 1] [--repeats 7]

The limits are the library's own loops: bytes read, and multiplications and additions in registers (float32, pairs of
bfloat16, int8). They are measured in turns with the operations, and every figure is a median. With one thread times are
the thread's CPU time, so that a busy machine disturbs them less; with more they are wall time. Weights and caches are
larger than the processor's caches. read: bytes that must be moved, over the read limit; compute: FLOPs over the limit
of the instruction that the level uses. Weights of integers, and an int8 KV cache (kv_int8), meet the activations of
`--activations`; torch has no such operations to compare.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from atb_models import env
from atb_models.layers.storage import METHODS, Storage
from atb_models.machine.memory import last_level_cache
from atb_models.models.dtypes import dtype_name
from atb_models.ops import moe
from atb_models.ops.gating import Gating
from atb_models.ops.kv_cache import quantize_vectors
from atb_models.ops.native import limits
from atb_models.ops.native.attention import paged_attention
from atb_models.ops.native.experts import experts
from atb_models.ops.native.gating import moe_gating
from atb_models.ops.native.library import Library, active, load
from atb_models.ops.native.linear import linear
from atb_models.ops.native.packing import GateUpPanels, Panels, operand
from atb_models.ops.native.rows import add_rms_norm
from atb_models.ops.weight import Layout, Packing, Weight

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BEYOND_CACHES = 200 << 20
WINDOWS = 30  # of a millisecond, for each measurement of a limit
MANY = 50  # of calls that take microseconds


@dataclass(frozen=True)
class Kind:
    """The type of the activations, and how what they meet is stored: weights, floats where `storage` is None, or a KV
    cache of int8, which is measured alone."""

    activations: torch.dtype
    storage: Storage | None = None
    int8_cache: bool = False

    def plain(self, *shape: int) -> Weight:
        """Random weights, as a checkpoint has them."""
        if self.storage is None:
            return Weight.plain(torch.empty(shape, dtype=self.activations).uniform_(-0.03, 0.03))
        unit = None if self.storage.group is None else math.gcd(self.storage.group, shape[-1])
        layout = Layout.integers(shape, bits=self.storage.bits, unit=unit, activations=self.storage.activations)
        assert layout.scales is not None
        least, most = (-8, 8) if layout.bits == 4 else (-100, 100)
        return Weight(layout, torch.randint(least, most, shape, dtype=torch.int8), torch.rand(layout.scales) / 1000)

    def computed(self, library: Library) -> tuple[torch.dtype, int]:
        """What products are computed in, and how many of them a multiplication takes: see csrc/dots.h."""
        storage = self.storage
        if storage is not None and storage.activations != "float":
            return torch.int8, 1
        if storage is not None and storage.bits == 4:
            return (torch.float32, 1) if library.level.name == "avx2" else (torch.int8, 3)
        return torch.bfloat16 if self.activations == torch.bfloat16 else torch.float32, 1


@dataclass
class Case:
    """`ours(i)` and `torchs(i)` do the same; i selects among copies that do not fit into the caches together.

    flops: of `dtype`, which products are computed in.
    """

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
        self.block = torch.ones(max(1 << 27, 2 * last_level_cache()), dtype=torch.uint8)
        self.clock = time.thread_time if threads == 1 else time.perf_counter

    def seconds(self, function: Callable[[], object]) -> float:
        started = self.clock()
        function()
        return self.clock() - started

    def read_rate(self) -> float:
        return limits.read_rate(self.library, self.block, self.threads, WINDOWS).value

    def compute_rate(self, dtype: torch.dtype) -> float:
        """Operations per second with numbers of this type, or as float32 where the level has no such instruction."""
        dot = {torch.bfloat16: limits.bf16_rate, torch.int8: limits.int8_rate}.get(dtype, limits.float_rate)
        rate = dot(self.library, self.threads, WINDOWS).value
        return rate or limits.float_rate(self.library, self.threads, WINDOWS).value


def main() -> None:
    words = [*DTYPES, *METHODS, "kv_int8"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", default="linear,experts,attention,small", help="some of these, by commas")
    parser.add_argument("--level", help="of the library; the best unless given")
    parser.add_argument(
        "--dtype", default="fp16,bf16,w8a16,w4a16,w8a8_dynamic,kv_int8", help=f"some of {', '.join(words)}, by commas"
    )
    parser.add_argument("--activations", choices=DTYPES, default="fp16", help="beside integers")
    parser.add_argument("--rows", default="1,8,32,256", help="rows of activations, by commas")
    parser.add_argument("--threads", type=int, default=env.get("OMP_NUM_THREADS") or 1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scale", type=int, default=1, help="divides the widths, for a quick look")
    args = parser.parse_args()
    if unknown := set(map(dtype_name, args.dtype.split(","))) - set(words):
        parser.error(f"argument --dtype: {', '.join(sorted(unknown))}: choose from {', '.join(words)}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    level = args.level or getattr(active().level, "name", None)
    if level is None:
        parser.error(f"no level of the library: {active()}")
    machine = Machine(load(level), args.threads)
    rows = [int(count) for count in args.rows.split(",")]
    cases = {"linear": linear_cases, "experts": experts_cases, "attention": attention_cases, "small": small_cases}
    for name in args.operation.split(","):
        for word in map(dtype_name, args.dtype.split(",")):
            kind = Kind(DTYPES[word if word in DTYPES else args.activations], METHODS.get(word), word == "kv_int8")
            for case in cases[name](machine.library, kind, rows, args.scale):
                print(f"{level} {word} {measure(machine, case, args.repeats)}", flush=True)


def measure(machine: Machine, case: Case, repeats: int) -> str:
    ours, torchs, reads, rates = [], [], [], []
    case.ours(0)
    for i in range(repeats):
        reads.append(machine.read_rate())
        rates.append(machine.compute_rate(case.dtype))
        ours.append(machine.seconds(partial(case.ours, i)))
        if case.torchs is not None:
            torchs.append(machine.seconds(partial(case.torchs, i)))
    took, read, rate = map(statistics.median, (ours, reads, rates))
    shares = f"read {case.read / took / read:4.0%} compute {case.flops / took / rate:4.0%}"
    beside = f", torch {statistics.median(torchs) / took:.1f} times that" if torchs else ""
    limits = f"[limits {read / 1e9:.1f} GB/s, {rate / 1e9:.0f} GFLOP/s]"
    return f"{case.name:36s} {took * 1e3:9.3f} ms  {shares}{beside}  {limits}"


def stored(packing: Packing, plain: Weight) -> Weight:
    """A weight, or a stack of them, as the loader leaves it."""
    layout = packing.layout(plain.layout)
    beside = {name: _stored(one, layout.beside[name], plain) for name, one in plain.beside.items()}
    return Weight(layout, _stored(plain.rows, layout, plain), **beside)


def _stored(values: Tensor, layout: Layout, plain: Weight) -> Tensor:
    if layout.packing is None:
        return values
    weight, stack = Weight(layout, torch.empty(layout.stored, dtype=layout.dtype)), len(plain.shape) == 3
    for unit, matrix in enumerate(values) if stack else [(None, values)]:
        layout.packing.pack(matrix, weight, unit)
    return weight.data


def linear_cases(library: Library, kind: Kind, rows: list[int], scale: int) -> Iterator[Case]:
    for outputs, inputs in ((6144, 2048), (2816, 2048), (2048, 1408), (102400, 2048)) if not kind.int8_cache else ():
        outputs, inputs = outputs // scale, inputs // scale
        plains = [kind.plain(outputs, inputs)]
        weights = [stored(Panels(library), plains[0])]
        for _ in range(BEYOND_CACHES // scale**2 // weights[0].nbytes):
            plains.append(kind.plain(outputs, inputs))
            weights.append(stored(Panels(library), plains[-1]))
        for count in rows:
            yield linear_case(library, kind, plains, weights, torch.randn(count, inputs).to(kind.activations))


def linear_case(library: Library, kind: Kind, plains: list[Weight], weights: list[Weight], x: Tensor) -> Case:
    """All the weights, one after the other."""
    (outputs, inputs), operands = plains[0].shape, [operand(weight) for weight in weights]
    dtype, products = kind.computed(library)
    return Case(
        f"linear {outputs} x {inputs}, {len(x)} rows",
        lambda i: [linear(library, x, packed, outputs, None, scales) for packed, scales in operands],
        None if kind.storage is not None else lambda i: [torch.mm(x, plain.rows.t()) for plain in plains],
        sum(weight.nbytes for weight in weights),
        2.0 * products * len(weights) * len(x) * outputs * inputs,
        dtype,
    )


def experts_cases(library: Library, kind: Kind, rows: list[int], scale: int) -> Iterator[Case]:
    """DeepSeek-MoE-16B's layer: 64 experts, 6 a token, 2048 -> 2 x 1408 -> 2048."""
    if kind.int8_cache:
        return
    num, top_k, hidden, width = 64, 6, 2048 // scale, 1408 // scale
    plain = kind.plain(num, 2 * width, hidden), kind.plain(num, hidden, width)
    weights = stored(GateUpPanels(library), plain[0]), stored(Panels(library), plain[1])
    (gate_up, gate_up_scale), (down, down_scale) = map(operand, weights)
    dtype, products = kind.computed(library)
    for count in rows:
        x = torch.randn(count, hidden).to(kind.activations)
        routes = [moe_gating(library, torch.rand(count, num), Gating(top_k)) for _ in range(8)]
        touched = statistics.median(len(chosen.unique()) for _, chosen in routes)

        def ours(i: int, x: Tensor = x, routes: list[tuple[Tensor, Tensor]] = routes) -> Tensor:
            chosen_weights, chosen = routes[i % 8]
            return experts(library, x, chosen, chosen_weights, gate_up, down, width, gate_up_scale, down_scale)

        def torchs(i: int, x: Tensor = x, routes: list[tuple[Tensor, Tensor]] = routes) -> Tensor:
            return moe.moe_experts.reference(x, *plain, *routes[i % 8])

        yield Case(
            f"experts, {count} tokens, {touched:.0f} of {num}",
            ours,
            None if kind.storage is not None else torchs,
            touched / num * sum(weight.nbytes for weight in weights),
            2.0 * products * count * top_k * 3 * hidden * width,
            dtype,
        )


def attention_cases(library: Library, kind: Kind, rows: list[int], scale: int) -> Iterator[Case]:
    """Decoding with mixed lengths over shuffled blocks, and whole prompts; head dimension and block size 128."""
    if kind.storage is not None:
        return
    for kv_heads, shared in ((16, 1), (4, 8)):
        cache = [torch.randn(600 // scale, 128, kv_heads, 128).to(kind.activations) for _ in range(2)]
        cache = [quantize_vectors(x)[0] for x in cache] if kind.int8_cache else cache
        for lengths in [2048], [128, 256, 384, 512, 700, 1024, 1500, 2048], [128 + 61 * i for i in range(32)]:
            shorter = [max(1, length // scale) for length in lengths]
            yield attention_case(library, kind, cache, shared, [1] * len(lengths), shorter)
        for length in 256, 1024:
            yield attention_case(library, kind, cache, shared, [length // scale], [length // scale])


def attention_case(
    library: Library, kind: Kind, cache: list[Tensor], shared: int, queries: list[int], lengths: list[int]
) -> Case:
    blocks, size, kv_heads, dim = cache[0].shape
    heads, prompt = kv_heads * shared, queries[0] > 1
    dtype, stored, int8 = kind.activations, cache[0].dtype, kind.int8_cache
    scales = (torch.rand(blocks, size, kv_heads, 1), torch.rand(blocks, size, kv_heads, 1)) if int8 else None
    table = torch.stack([torch.randperm(blocks)[: -(-max(lengths) // size)] for _ in lengths]).int()
    q = torch.randn(sum(queries), heads, dim).to(dtype)
    starts = torch.tensor([0, *accumulate(queries)], dtype=torch.int32)
    kv_lens = torch.tensor(lengths, dtype=torch.int32)
    pairs = lengths[0] * (lengths[0] + 1) / 2 if prompt else sum(lengths)
    torchs = prompt and not int8
    plain = [torch.randn(1, n, lengths[0], dim).to(dtype) for n in (heads, kv_heads, kv_heads)]
    return Case(
        f"{'prompt' if prompt else 'decoding'}, {heads} over {kv_heads} heads, {len(lengths)} x {max(lengths)}",
        lambda i: paged_attention(library, q, *cache, table, starts, kv_lens, 0.1, scales),
        (lambda i: scaled_dot_product_attention(*plain, is_causal=True, enable_gqa=True)) if torchs else None,
        2.0 * sum(lengths) * kv_heads * (dim * stored.itemsize + 4 * int8),
        4.0 * pairs * heads * dim,
        torch.float32,
    )


def small_cases(library: Library, kind: Kind, rows: list[int], scale: int) -> Iterator[Case]:
    for count in rows if kind.storage is None and not kind.int8_cache else ():
        yield norm_case(library, *(torch.randn(count, 2048 // scale).to(kind.activations) for _ in range(2)))
        yield gating_case(library, torch.randn(count, 64))


def norm_case(library: Library, x: Tensor, residual: Tensor) -> Case:
    weight = torch.ones(x.shape[1], dtype=x.dtype)
    return Case(
        f"{MANY} times add and norm, {len(x)} x {x.shape[1]}",
        lambda i: [add_rms_norm(library, x, residual, weight, 1e-6) for _ in range(MANY)],
        lambda i: [rms_norm(x + residual, weight.shape, weight, 1e-6) for _ in range(MANY)],
        4.0 * MANY * x.nbytes,
        5.0 * MANY * x.numel(),
        torch.float32,
    )


def gating_case(library: Library, scores: Tensor) -> Case:
    return Case(
        f"{MANY} times gating, {len(scores)} x {scores.shape[1]}",
        lambda i: [moe_gating(library, scores, Gating(6)) for _ in range(MANY)],
        lambda i: [scores.softmax(-1).topk(6) for _ in range(MANY)],
        1.0 * MANY * scores.nbytes,
        4.0 * MANY * scores.numel(),
        torch.float32,
    )


if __name__ == "__main__":
    main()
