"""How nodes are written for people: shapes, figures, names; plain ASCII."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch

from atb_models.graph.fold import Folded, within_layer
from atb_models.graph.graph import Node, OpGraph, Value
from atb_models.ops.cost import Cost
from atb_models.wording import counted, precision


def dtype_name(dtype: torch.dtype) -> str:
    """As fp16, bf16, int64."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def results(node: Node) -> str:
    """Shapes of what it returns, as 1024x64 fp32 x2; of what only writes, the names that it writes."""
    shapes = Counter(f"{'x'.join(map(str, value.shape))} {dtype_name(value.dtype)}" for value in node.outputs)
    returned = [shape if times == 1 else f"{shape} x{times}" for shape, times in shapes.items()]
    return ", ".join(returned or [without_letters(within_layer(name)) for name in node.writes])


def operands(folded: Folded, node: Node) -> list[str]:
    """What it reads: results as %<node>, tensors of the step by name; not the weights, which are its module's own."""
    names = [folded.name(value) for value in node.inputs if value.node is not None or not is_weight(value.argument)]
    return list(dict.fromkeys(name if name[0] == "%" else without_letters(within_layer(name)) for name in names))


def is_weight(argument: str) -> bool:
    """Whether the definitions of operations call a parameter so."""
    return without_letters(argument).rpartition("_")[2] in ("weight", "bias")


def weights_read(graph: OpGraph) -> float:
    """Bytes of parameters that the step reads: rows of the embedding, touched experts, all others whole."""
    total = 0.0
    for node in graph.nodes:
        weights = [value for value in node.inputs if value.node is None and is_weight(value.argument)]
        others = [value for value in node.inputs if value not in weights]
        if weights:
            total += node.cost.read - sum(_read(value, node, graph) for value in others)
    return total


def _read(value: Value, node: Node, graph: OpGraph) -> int:
    """Bytes that a node reads of an operand that is no weight: of the KV cache what the sequences have there."""
    elements = math.prod(value.shape)
    if _is_plane(value):
        elements = sum(graph.kv_lens) * math.prod(value.shape[2:])
    elif value.argument == "block_table_BC":
        block_size = next(plane.shape[1] for plane in node.inputs if _is_plane(plane))
        elements = sum(-(-length // block_size) for length in graph.kv_lens)
    return elements * value.dtype.itemsize


def _is_plane(value: Value) -> bool:
    return without_letters(value.argument).endswith("_cache")


def without_letters(name: str) -> str:
    """A tensor's name without its shape letters: slots_T -> slots."""
    head, _, letters = name.rpartition("_")
    return head if head and letters.isalpha() and letters.isupper() else name


def figure(value: float) -> str:
    """In at most 6 places while below a million; - for none."""
    if value == 0:
        return "-"
    if value < 0.001:
        return "<0.001"
    return f"{value:.{max(0, 4 - len(str(int(value))))}f}"


@dataclass(frozen=True)
class Unit:
    """What figures of a step are written in, as GFLOP."""

    name: str
    scale: float

    def __call__(self, value: float) -> str:
        return figure(value / self.scale)


@dataclass(frozen=True)
class Units:
    """Of FLOPs, bytes of memory traffic, bytes sent: each the largest in which some node has 1 or more."""

    flops: Unit
    moved: Unit
    sent: Unit

    @classmethod
    def of(cls, graph: OpGraph) -> Units:
        costs = [node.cost for node in graph.nodes]
        return cls(
            _unit("FLOP", max(cost.flops for cost in costs)),
            _unit("B", max(cost.moved for cost in costs)),
            _unit("B", max(cost.sent for cost in costs)),
        )

    def all(self, cost: Cost) -> str:
        """As 1.234 GFLOP, 56.78 MB, 901.2 KB sent, without what is none."""
        figures = {
            f"{self.flops(cost.flops)} {self.flops.name}": cost.flops,
            f"{self.moved(cost.moved)} {self.moved.name}": cost.moved,
            f"{self.sent(cost.sent)} {self.sent.name} sent": cost.sent,
        }
        return ", ".join(text for text, value in figures.items() if value)


def _unit(noun: str, largest: float) -> Unit:
    scales = (("G", 1e9), ("M", 1e6), ("K", 1e3)) if noun == "FLOP" else (("M", 1e6), ("K", 1e3))
    letter, scale = next((pair for pair in scales if largest >= pair[1]), scales[-1])
    return Unit(letter + noun, scale)


def step_title(name: str, graph: OpGraph) -> str:
    """What the step holds, as "prefill: 1024 tokens of 1 sequence, KV 1024"."""
    tokens, batch = sum(graph.query_lens), len(graph.query_lens)
    cached = sorted(set(graph.kv_lens))
    lengths = str(cached[0]) if len(cached) == 1 else f"{cached[0]} to {cached[-1]}"
    return f"{name}: {counted(tokens, 'token')} of {counted(batch, 'sequence')}, KV {lengths}{' each' * (batch > 1)}"


def subject_title(model: str, graph: OpGraph) -> str:
    """As "deepseek-moe-16b-base, fp16, rank 0 of 8"; what cannot be printed of the name is ?."""
    model = "".join(letter if letter.isprintable() else "?" for letter in model)
    kv_dtype = None if graph.kv_dtype is None else dtype_name(graph.kv_dtype)
    storage = precision(dtype_name(graph.dtype), graph.quantize, kv_dtype)
    return f"{model}, {storage}, rank {graph.rank} of {graph.size}"
