"""Where and how a model's parameters are made: the same for all of its layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from atb_models.layers.quantization import Quantization
from atb_models.ops.collectives import Collective
from atb_models.ops.table import Op, check_quantized
from atb_models.ops.weight import Layout, Weight


@dataclass(frozen=True)
class ParallelGroup:
    """This rank's place among the ranks that share something, and what moves tensors between them."""

    rank: int = 0
    size: int = 1
    group: Collective | None = None  # needed only to run with size > 1

    def width(self, n: int) -> int:
        """A rank's share of n, rounded up: every rank has the same shape, the last ones are padded with zeros."""
        return -(-n // self.size)

    def span(self, n: int) -> tuple[int, int]:
        """This rank's [start, stop) of n."""
        return min(self.rank * self.width(n), n), min((self.rank + 1) * self.width(n), n)

    def collective(self) -> Collective:
        """For the operations between its ranks."""
        assert self.group is not None, "a sharded model runs only within its group of ranks"
        return self.group


@dataclass(frozen=True)
class Build:
    """What every layer is built with.

    tensor: the ranks that cut heads, widths and the vocabulary among them. expert: those that hold different experts,
    data: those that hold the same weights for different requests; one rank each today. quantization: how the weights of
    linear maps are stored in fewer bits; None: as floats of `dtype`. Raises ConfigError where the bound backend does
    not take it.
    """

    dtype: torch.dtype
    device: torch.device
    tensor: ParallelGroup = field(default_factory=ParallelGroup)
    expert: ParallelGroup = field(default_factory=ParallelGroup)
    data: ParallelGroup = field(default_factory=ParallelGroup)
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        assert self.expert.size == self.data.size == 1, "experts and requests are not spread over ranks yet"
        if self.quantization is not None:
            check_quantized(self.quantization.name)

    def parameter(self, *shape: int, dtype: torch.dtype | None = None, padded: bool = False) -> nn.Parameter:
        """An unfilled parameter; `padded` ones start as zeros because their parts do not cover them."""
        make = torch.zeros if padded else torch.empty
        return nn.Parameter(make(shape, dtype=dtype or self.dtype, device=self.device), requires_grad=False)

    def weight(
        self,
        operation: Op,
        argument: str,
        *shape: int,
        dtype: torch.dtype | None = None,
        padded: bool = False,
        quantized: bool = False,
    ) -> Weight:
        """An unfilled weight [O, I], or a stack [E, O, I], stored as the bound backend takes it for that argument.

        quantized: it is one of those that the model's quantisation, if there is one, stores in fewer bits.
        """
        plain = Layout.plain(shape, dtype or self.dtype)
        if quantized and self.quantization is not None:
            plain = self.quantization.layout(plain)
        packing = operation.packings.get(argument)
        layout = plain if packing is None else packing.layout(plain)
        data = self.parameter(*layout.stored, dtype=layout.dtype, padded=padded)
        scale = None if layout.scales is None else self.parameter(*layout.scales, dtype=torch.float32, padded=padded)
        return Weight(layout, data, scale)
