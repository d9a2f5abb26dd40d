"""Linear maps cut across ranks: by output feature (column) or by input feature (row)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build, Wanted
from atb_models.layers.parameter import Part, cut, hold
from atb_models.layers.share import Share
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


def _weight(build: Build, outputs: int, inputs: int, *, step: int | None = None, padded: bool = False) -> Weight:
    storage = build.storage("weight")
    product = _product("float" if storage is None else storage.activations)
    return build.weight(product, "weight_OI", Wanted((outputs, inputs), storage, step, padded=padded))


def part_linear(
    build: Build, part: Part, outputs: int, inputs: int, *, bias: bool = False, padded: bool = False
) -> Linear:
    """A weight [outputs, inputs] of this rank that one part fills, with whole rows of its checkpoint tensor."""
    biased = build.biased("weight", ("",), own=bias)
    bias_O = build.parameter(outputs, padded=padded) if biased else None
    bias_part = replace(part, shape=part.shape[:1])
    return Linear(_weight(build, outputs, inputs, padded=padded), {"": part}, bias_O, {"": bias_part})


def column_linear(build: Build, inputs: int, outputs: dict[str, Share], *, bias: bool = False) -> Linear:
    """Each role's output features cut across the ranks and laid one after the other (gate-up; queries, keys, values).

    bias: whether the model's configuration gives every role one.
    """
    parts, bias_parts, first = dict[str, Part](), dict[str, Part](), 0
    biased = build.biased("weight", outputs, own=bias)
    for role, share in outputs.items():
        parts[role] = cut((share.total, inputs), 0, share.span, first)
        if role in biased:
            bias_parts[role] = cut((share.total,), 0, share.span, first)
        first += share.width
    weight = _weight(build, first, inputs, padded=any(share.padded for share in outputs.values()))
    return Linear(weight, parts, build.parameter(first, padded=True) if biased else None, bias_parts)


def row_linear(build: Build, inputs: Share, outputs: int, *, bias: bool = False) -> Linear:
    """Input features cut across the ranks; the caller sums the ranks' results."""
    weight = _weight(build, outputs, inputs.width, step=inputs.step, padded=inputs.padded)
    parts = {"": cut((outputs, inputs.total), 1, inputs.span)}
    biased = build.biased("weight", parts, own=bias)
    return Linear(weight, parts, build.parameter(outputs) if biased else None, adds_bias=build.tensor.rank == 0)
