"""Linear maps cut across ranks: by output feature (column) or by input feature (row)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build, Wanted
from atb_models.layers.parameter import Part, cut, hold
from atb_models.ops.table import Op
from atb_models.ops.weight import Activations, Weight


class Linear(nn.Module):
    """y = x W^T + b with this rank's share of W; where the ranks' results are summed, only one of them adds b."""

    bias: nn.Parameter | None

    def __init__(
        self,
        weight_OI: Weight,
        parts: dict[str, Part],
        bias_O: nn.Parameter | None = None,
        bias_parts: dict[str, Part] | None = None,
        *,
        adds_bias: bool = True,
    ) -> None:
        super().__init__()
        self.stored = weight_OI
        hold(self, "weight", weight_OI, parts)
        self.register_parameter("bias", None)
        if bias_O is not None:
            hold(self, "bias", bias_O, bias_parts or {"": Part(tuple(bias_O.shape))})
        self.adds_bias = adds_bias
        self.product = _product(weight_OI.layout.activations)

    def forward(self, x_TI: Tensor) -> Tensor:
        return self.product(x_TI, self.stored, self.added_bias)

    @property
    def added_bias(self) -> Tensor | None:
        """The bias, where this rank is the one that adds it."""
        return self.bias if self.adds_bias else None


def _product(activations: Activations) -> Op:
    """The operation that multiplies floats with a weight that takes such activations."""
    return ops.linear if activations == "float" else ops.quant_linear


def _weight(build: Build, outputs: int, inputs: int, *, padded: bool = False) -> Weight:
    storage = build.storage("weight")
    product = _product("float" if storage is None else storage.activations)
    return build.weight(product, "weight_OI", Wanted((outputs, inputs), storage, padded=padded))


def part_linear(
    build: Build,
    part: Part,
    rows: int,
    inputs: int,
    *,
    bias: bool = False,
    padded: bool = False,
    adds_bias: bool = True,
) -> Linear:
    """A weight [rows, inputs] of this rank that one part fills, as cut from its checkpoint tensor."""
    bias_part = replace(part, shape=part.shape[:1]) if part.dim == 0 else Part(part.shape[:1], order=part.order)
    biased = build.biased("weight", ("",), own=bias)
    bias_O = build.parameter(rows, padded=padded and part.dim == 0) if biased else None
    return Linear(_weight(build, rows, inputs, padded=padded), {"": part}, bias_O, {"": bias_part}, adds_bias=adds_bias)


def column_linear(build: Build, inputs: int, outputs: dict[str, int], *, bias: bool = False) -> Linear:
    """Each role's output features cut across the ranks and laid one after the other (gate-up)."""
    ranks = build.tensor
    parts, bias_parts, first = dict[str, Part](), dict[str, Part](), 0
    biased = build.biased("weight", outputs, own=bias)
    for role, n in outputs.items():
        parts[role] = cut((n, inputs), 0, ranks.span(n), first)
        if role in biased:
            bias_parts[role] = cut((n,), 0, ranks.span(n), first)
        first += ranks.width(n)
    weight = _weight(build, first, inputs, padded=any(map(ranks.pads, outputs.values())))
    return Linear(weight, parts, build.parameter(first, padded=True) if biased else None, bias_parts)


def row_linear(build: Build, inputs: int, outputs: int, *, bias: bool = False) -> Linear:
    """Input features cut across the ranks; the caller sums the ranks' results."""
    ranks = build.tensor
    weight = _weight(build, outputs, ranks.width(inputs), padded=ranks.pads(inputs))
    parts = {"": cut((outputs, inputs), 1, ranks.span(inputs))}
    biased = build.biased("weight", parts, own=bias)
    return Linear(weight, parts, build.parameter(outputs) if biased else None, adds_bias=ranks.rank == 0)


def qkv_linear(
    build: Build, hidden: int, heads: dict[str, tuple[int, int, int]], head_dim: int, *, bias: bool = False
) -> Linear:
    """Queries, keys and values in one matrix. `heads`: role -> (heads in all, first head here, heads here)."""
    rows = sum(here for _, _, here in heads.values()) * head_dim
    weight_parts: dict[str, Part] = {}
    bias_parts: dict[str, Part] = {}
    biased = build.biased("weight", heads, own=bias)
    offset = 0
    for role, (total, first, here) in heads.items():
        span = first * head_dim, (first + here) * head_dim
        weight_parts[role] = cut((total * head_dim, hidden), 0, span, offset)
        if role in biased:
            bias_parts[role] = cut((total * head_dim,), 0, span, offset)
        offset += here * head_dim
    padded = len(biased) < len(heads)
    bias_O = build.parameter(rows, padded=padded) if biased else None
    return Linear(_weight(build, rows, hidden), weight_parts, bias_O, bias_parts)
