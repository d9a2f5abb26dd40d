"""Parameters that know where their values come from: the sharding rule stands beside the parameter it shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from atb_models.ops.collectives import Collective


@dataclass(frozen=True)
class Part:
    """One checkpoint tensor's place in a parameter of this rank."""

    shape: tuple[int, ...]  # of the whole tensor in the checkpoint
    target: Tensor  # the view of the parameter that it fills
    dim: int | None = None  # dimension cut across the ranks; None: every rank reads the whole
    start: int = 0  # this rank's range along dim; may be empty
    stop: int = 0


@dataclass(frozen=True)
class Build:
    """Where and how a model's parameters are made: the same for all of its layers."""

    dtype: torch.dtype
    device: torch.device
    rank: int = 0
    size: int = 1
    group: Collective | None = None  # needed only to run with size > 1

    def width(self, n: int) -> int:
        """A rank's share of n, rounded up: every rank has the same shape, the last ones are padded with zeros."""
        return -(-n // self.size)

    def span(self, n: int) -> tuple[int, int]:
        """This rank's [start, stop) of n."""
        return min(self.rank * self.width(n), n), min((self.rank + 1) * self.width(n), n)

    def parameter(self, *shape: int, dtype: torch.dtype | None = None, padded: bool = False) -> nn.Parameter:
        """An unfilled parameter; `padded` ones start as zeros because their parts do not cover them."""
        make = torch.zeros if padded else torch.empty
        return nn.Parameter(make(shape, dtype=dtype or self.dtype, device=self.device), requires_grad=False)

    def collective(self) -> Collective:
        assert self.group is not None, "a sharded model runs only within its group of ranks"
        return self.group


def set_parts(parameter: nn.Parameter, parts: dict[str, Part]) -> nn.Parameter:
    """Attach the parts that fill `parameter`, by role ("" where there is only one)."""
    parameter.parts = parts  # type: ignore[attr-defined]
    return parameter


def parts_of(parameter: nn.Parameter) -> dict[str, Part]:
    """The parts attached to `parameter`."""
    return cast("dict[str, Part]", parameter.parts)  # type: ignore[attr-defined]


def whole(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter that every rank holds entirely."""
    return set_parts(parameter, {"": Part(tuple(parameter.shape), parameter.data)})


def cut(shape: tuple[int, ...], dim: int, span: tuple[int, int], target: Tensor) -> Part:
    """The part that fills the beginning of `target` along `dim` with [start, stop) of a checkpoint tensor."""
    start, stop = span
    return Part(shape, target.narrow(dim, 0, stop - start), dim, start, stop)
