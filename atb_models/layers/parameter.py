"""Parameters that know where their values come from: the sharding rule stands beside the parameter it shards."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from atb_models.ops.weight import Weight


@dataclass(frozen=True)
class Part:
    """One checkpoint tensor's place in a parameter of this rank."""

    shape: tuple[int, ...]  # of the whole tensor in the checkpoint
    dim: int | None = None  # dimension cut across the ranks; None: every rank reads the whole
    start: int = 0  # this rank's range along dim; may be empty
    stop: int = 0
    first: int = 0  # where that range begins along dim in its matrix
    unit: int | None = None  # the matrix of a stack; None: the parameter is one

    def within(self, matrix: Tensor) -> Tensor:
        """The view of its matrix that it fills."""
        return matrix if self.dim is None else matrix.narrow(self.dim, self.first, self.stop - self.start)

    def of_scales(self) -> Part:
        """The part that the rows' scales fill: a scale belongs to a whole row, also where the row is cut."""
        return replace(self, shape=self.shape[:-1], dim=0 if self.dim == 0 else None)

    @property
    def numel(self) -> int:
        """Elements that this rank reads."""
        return math.prod(self.shape if self.dim is None else self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of what this rank reads."""
        return tuple(self.stop - self.start if i == self.dim else n for i, n in enumerate(self.shape))


@dataclass(frozen=True)
class Filling:
    """How a parameter is filled: its parts by role ("" where there is only one), and the weight that it holds."""

    parts: dict[str, Part]
    weight: Weight

    @cached_property
    def scales(self) -> Filling:
        """How the scales of a quantised weight are filled."""
        assert self.weight.scale is not None and self.weight.layout.quantized
        parts = {role: part.of_scales() for role, part in self.parts.items()}
        return Filling(parts, Weight.plain(self.weight.scale))

    def matrix(self, unit: int | None) -> Tensor:
        """The matrix of a part, whose values are read straight to their place; only of a plain weight."""
        return self.weight.rows if unit is None else self.weight.rows[unit]


def hold(module: nn.Module, name: str, weight: Weight | nn.Parameter, parts: dict[str, Part]) -> None:
    """Register a parameter of `module`, with the parts that fill it; the scales of a weight are `name`_scale."""
    stored = Weight.plain(weight.data) if isinstance(weight, nn.Parameter) else weight
    module.register_parameter(name, weight if isinstance(weight, nn.Parameter) else _parameter(weight.data))
    if stored.scale is not None:
        module.register_parameter(f"{name}_scale", _parameter(stored.scale))
    module.__dict__.setdefault("fillings", {})[name] = Filling(parts, stored)


def whole(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter that every rank holds entirely."""
    hold(module, name, parameter, {"": Part(tuple(parameter.shape))})


def cut(shape: tuple[int, ...], dim: int, span: tuple[int, int], first: int = 0, unit: int | None = None) -> Part:
    """The part that holds [start, stop) along `dim` of a checkpoint tensor, from `first` on in its matrix."""
    return Part(shape, dim, *span, first, unit)


def fillings(model: nn.Module) -> dict[str, Filling]:
    """How each parameter of the model is filled, by its name."""
    found: dict[str, Filling] = {}
    for path, module in model.named_modules():
        own: dict[str, Filling] = getattr(module, "fillings", {})
        found |= {f"{path}.{name}" if path else name: filling for name, filling in own.items()}
    return found


def _parameter(tensor: Tensor) -> nn.Parameter:
    assert isinstance(tensor, nn.Parameter), "a layer's weight is made by Build"
    return tensor
