"""The graph of one step on one rank: operations as nodes, tensors as edges."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch

from atb_models.ops.cost import Cost


@dataclass(frozen=True)
class Value:
    """A tensor as an operation sees it."""

    name: str  # of a parameter, a cache, an input of the step; else %<node>, %<node>.<i> of several; ? stray
    argument: str  # as the operation's definition calls it; "" for a result
    shape: tuple[int, ...]
    dtype: torch.dtype
    node: int | None  # the node that wrote it last, through whatever views; None: no node did


@dataclass(frozen=True)
class Node:
    """One call of an operation. Bytes are of one rank."""

    index: int
    op: str
    module: str  # path in the model, "" for the decoder itself
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    writes: tuple[str, ...]  # names of the inputs that it changes
    options: dict[str, Any]  # its arguments that are no tensors
    cost: Cost
    backend: str  # who serves the operation: a device type, or "reference"
    peak_bytes: int  # of activations while it runs, its own workspace included


@dataclass(frozen=True)
class OpGraph:
    """What one step does on one rank.

    `stray`: torch functions that did more than a view outside any operation, and where; a graph without is complete.
    """

    nodes: tuple[Node, ...]
    stray: tuple[str, ...]
    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    dtype: torch.dtype
    rank: int
    size: int
    quantize: str | None = None  # the method of the weights
    kv_dtype: torch.dtype | None = None  # of the KV cache; None: `dtype`

    @property
    def cost(self) -> Cost:
        """Of all nodes."""
        return reduce(add, (node.cost for node in self.nodes), Cost())

    @property
    def peak_activation_bytes(self) -> int:
        """The most memory that activations and workspaces take at a time; weights, caches and inputs apart."""
        return max((node.peak_bytes for node in self.nodes), default=0)

    def counts(self) -> dict[str, int]:
        """Calls of each operation, in the order of their first."""
        return dict(Counter(node.op for node in self.nodes))

    def to_json(self) -> dict[str, Any]:
        """As JSON values; dtypes as torch writes them, without "torch."."""
        return {
            "rank": self.rank,
            "ranks": self.size,
            "dtype": _name(self.dtype),
            "quantize": self.quantize,
            "kv_dtype": None if self.kv_dtype is None else _name(self.kv_dtype),
            "query_lens": list(self.query_lens),
            "kv_lens": list(self.kv_lens),
            "counts": self.counts(),
            "peak_activation_bytes": self.peak_activation_bytes,
            "stray": list(self.stray),
            "nodes": [_node_json(node) for node in self.nodes],
        }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "index": node.index,
        "op": node.op,
        "module": node.module,
        "backend": node.backend,
        "inputs": [_value_json(value) | {"argument": value.argument, "node": value.node} for value in node.inputs],
        "outputs": [_value_json(value) for value in node.outputs],
        "writes": list(node.writes),
        "options": node.options,
        "flops": node.cost.flops,
        "bytes_read": node.cost.read,
        "bytes_written": node.cost.written,
        "bytes_sent": node.cost.sent,
        "peak_bytes": node.peak_bytes,
    }


def _value_json(value: Value) -> dict[str, Any]:
    return {"name": value.name, "shape": list(value.shape), "dtype": _name(value.dtype)}
