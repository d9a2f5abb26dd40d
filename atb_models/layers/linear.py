"""Linear maps cut across ranks: by output feature (column) or by input feature (row)."""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.parameter import Build, Part, cut, set_parts, whole


class Linear(nn.Module):
    """y = x W^T + b with this rank's share of W; where the ranks' results are summed, only one of them adds b."""

    def __init__(self, weight_OI: nn.Parameter, bias_O: nn.Parameter | None = None, *, adds_bias: bool = True) -> None:
        super().__init__()
        self.weight = weight_OI
        self.register_parameter("bias", bias_O)
        self.adds_bias = adds_bias

    def forward(self, x_TI: Tensor) -> Tensor:
        return ops.linear(x_TI, self.weight, self.bias if self.adds_bias else None)


def column_linear(build: Build, inputs: int, outputs: dict[str, int]) -> Linear:
    """Each role's output features cut across the ranks and laid one after the other (gate-up; the head)."""
    width = sum(build.width(n) for n in outputs.values())
    weight = build.parameter(width, inputs, padded=any(n % build.size for n in outputs.values()))
    parts, offset = {}, 0
    for role, n in outputs.items():
        parts[role] = cut((n, inputs), 0, build.span(n), weight.data[offset : offset + build.width(n)])
        offset += build.width(n)
    return Linear(set_parts(weight, parts))


def row_linear(build: Build, inputs: int, outputs: int, *, bias: bool = False) -> Linear:
    """Input features cut across the ranks; the caller sums the ranks' results."""
    weight = build.parameter(outputs, build.width(inputs), padded=inputs % build.size != 0)
    set_parts(weight, {"": cut((outputs, inputs), 1, build.span(inputs), weight.data)})
    return Linear(weight, whole(build.parameter(outputs)) if bias else None, adds_bias=build.rank == 0)


def qkv_linear(
    build: Build, hidden: int, heads: dict[str, tuple[int, int, int]], head_dim: int, *, bias: bool = False
) -> Linear:
    """Queries, keys and values in one matrix. `heads`: role -> (heads in all, first head here, heads here)."""
    rows = sum(here for _, _, here in heads.values()) * head_dim
    weight = build.parameter(rows, hidden)
    vector = build.parameter(rows) if bias else None
    weight_parts: dict[str, Part] = {}
    bias_parts: dict[str, Part] = {}
    offset = 0
    for role, (total, first, here) in heads.items():
        span, count = (first * head_dim, (first + here) * head_dim), here * head_dim
        weight_parts[role] = cut((total * head_dim, hidden), 0, span, weight.data[offset : offset + count])
        if vector is not None:
            bias_parts[role] = cut((total * head_dim,), 0, span, vector.data[offset : offset + count])
        offset += count
    return Linear(set_parts(weight, weight_parts), set_parts(vector, bias_parts) if vector is not None else None)
