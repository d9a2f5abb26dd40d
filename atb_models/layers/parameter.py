"""Parameters that know where their values come from: the sharding rule stands beside the parameter it shards."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    # In every run of so many rows of the checkpoint tensor, the numbers of the rows in the order in which they are
    # taken; rows here are the reordered ones. None: as they lie.
    order: tuple[int, ...] | None = None

    def within(self, matrix: Tensor) -> Tensor:
        """The view of its matrix that it fills."""
        return matrix if self.dim is None else matrix.narrow(self.dim, self.first, self.stop - self.start)

    def of_scales(self, unit: int | None) -> Part:
        """The part that scales fill, one for each `unit` of inputs, none of which is cut; None: for whole rows."""
        if unit is None:
            return replace(self, shape=self.shape[:-1], dim=0 if self.dim == 0 else None)
        shape = (*self.shape[:-1], -(-self.shape[-1] // unit))
        if self.dim == 0:
            return replace(self, shape=shape)
        start, stop, first = (-(-place // unit) for place in (self.start, self.stop, self.first))
        return replace(self, shape=shape, start=start, stop=stop, first=first)

    def of_sums(self) -> Part:
        """The part that what is added to the sums fills: of ranks that share inputs the first adds it."""
        if self.dim == 0:
            return replace(self, shape=self.shape[:-1])
        return replace(self, shape=self.shape[:-1], dim=0, start=0, stop=0 if self.start else self.shape[0])

    def of_inputs(self) -> Part:
        """The part that what holds for all inputs fills: one number, which all parts of a matrix have in common."""
        return Part((1,), unit=self.unit)

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
    def beside(self) -> dict[str, Filling]:
        """How the tensors beside a quantised weight are filled, by name; a checkpoint has none beside others."""
        if not self.weight.layout.quantized:
            return {}
        unit = self.weight.layout.unit
        part_of: dict[str, Callable[[Part], Part]] = {
            "scale": lambda part: part.of_scales(unit),
            "offset": lambda part: part.of_scales(unit),
            "input_scale": Part.of_inputs,
            "input_offset": Part.of_inputs,
            "quant_bias": Part.of_sums,
        }
        return {
            name: Filling(
                {role: part_of[name](part) for role, part in self.parts.items()},
                Weight(self.weight.layout.beside[name], tensor),
            )
            for name, tensor in self.weight.beside.items()
        }

    def matrix(self, unit: int | None) -> Tensor:
        """The matrix of a part, whose values are read straight to their place; only of a plain weight."""
        return self.weight.rows if unit is None else self.weight.rows[unit]


def hold(module: nn.Module, name: str, weight: Weight | nn.Parameter, parts: dict[str, Part]) -> None:
    """Register a parameter of `module`, with the parts that fill it; what is beside a weight is `name`_scale ..."""
    stored = Weight.plain(weight.data) if isinstance(weight, nn.Parameter) else weight
    module.register_parameter(name, weight if isinstance(weight, nn.Parameter) else _parameter(weight.data))
    for beside, tensor in stored.beside.items():
        module.register_parameter(f"{name}_{beside}", _parameter(tensor))
    module.__dict__.setdefault("fillings", {})[name] = Filling(parts, stored)


def whole(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter that every rank holds entirely."""
    hold(module, name, parameter, {"": Part(tuple(parameter.shape))})


def cut(
    shape: tuple[int, ...],
    dim: int,
    span: tuple[int, int],
    first: int = 0,
    unit: int | None = None,
    order: tuple[int, ...] | None = None,
) -> Part:
    """The part that holds [start, stop) along `dim` of a checkpoint tensor, from `first` on in its matrix."""
    return Part(shape, dim, *span, first, unit, order)


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
