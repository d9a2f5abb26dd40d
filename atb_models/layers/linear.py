"""Linear maps cut across ranks: by output feature (column) or by input feature (row)."""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.layers.parameter import Part, cut, hold
from atb_models.ops.weight import Weight


class Linear(nn.Module):
    """y = x W^T + b with this rank's share of W; where the ranks' results are summed, only one of them adds b."""

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

    def forward(self, x_TI: Tensor) -> Tensor:
        return ops.linear(x_TI, self.stored, self.bias if self.adds_bias else None)


def column_linear(build: Build, inputs: int, outputs: dict[str, int]) -> Linear:
    """Each role's output features cut across the ranks and laid one after the other (gate-up)."""
    ranks = build.tensor
    width = sum(ranks.width(n) for n in outputs.values())
    padded = any(n % ranks.size for n in outputs.values())
    weight = build.weight(ops.linear, "weight_OI", width, inputs, padded=padded, quantized=True)
    parts, offset = {}, 0
    for role, n in outputs.items():
        parts[role] = cut((n, inputs), 0, ranks.span(n), offset)
        offset += ranks.width(n)
    return Linear(weight, parts)


def row_linear(build: Build, inputs: int, outputs: int, *, bias: bool = False) -> Linear:
    """Input features cut across the ranks; the caller sums the ranks' results."""
    ranks = build.tensor
    width, padded = ranks.width(inputs), inputs % ranks.size != 0
    weight = build.weight(ops.linear, "weight_OI", outputs, width, padded=padded, quantized=True)
    parts = {"": cut((outputs, inputs), 1, ranks.span(inputs))}
    return Linear(weight, parts, build.parameter(outputs) if bias else None, adds_bias=ranks.rank == 0)


def qkv_linear(
    build: Build, hidden: int, heads: dict[str, tuple[int, int, int]], head_dim: int, *, bias: bool = False
) -> Linear:
    """Queries, keys and values in one matrix. `heads`: role -> (heads in all, first head here, heads here)."""
    rows = sum(here for _, _, here in heads.values()) * head_dim
    weight_parts: dict[str, Part] = {}
    bias_parts: dict[str, Part] = {}
    offset = 0
    for role, (total, first, here) in heads.items():
        span = first * head_dim, (first + here) * head_dim
        weight_parts[role] = cut((total * head_dim, hidden), 0, span, offset)
        bias_parts[role] = cut((total * head_dim,), 0, span, offset)
        offset += here * head_dim
    weight = build.weight(ops.linear, "weight_OI", rows, hidden, quantized=True)
    return Linear(weight, weight_parts, build.parameter(rows) if bias else None, bias_parts)
