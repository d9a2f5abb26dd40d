"""Where and how a model's parameters are made: the same for all of its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from atb_models.layers.share import Share
from atb_models.layers.storage import Quantization, Storage
from atb_models.ops.collectives import Collective
from atb_models.ops.table import Op, check_dtype, check_quantized, group_step
from atb_models.ops.weight import Layout, Weight


@dataclass(frozen=True)
class ParallelGroup:
    """This rank's place among the ranks that share something, and what moves tensors between them."""

    rank: int = 0
    size: int = 1
    group: Collective | None = None  # needed only to run with size > 1

    def share(self, n: int, step: int = 1) -> Share:
        """This rank's share of n; on every rank as wide, by the least multiple of `step` with which they hold all n."""
        width = -(-n // (self.size * step)) * step
        start = min(self.rank * width, n)
        return Share(n, start, min(start + width, n), width, width)

    def collective(self) -> Collective:
        """For the operations between its ranks."""
        assert self.group is not None, "a sharded model runs only within its group of ranks"
        return self.group


@dataclass(frozen=True)
class Wanted:
    """A weight [O, I], or a stack [E, O, I], to be made. storage: None for floats of `dtype`, the model's if None.

    step: of I, where ranks cut them, see `Share`; None: I.
    """

    shape: tuple[int, ...]
    storage: Storage | None = None
    step: int | None = None
    dtype: torch.dtype | None = None
    padded: bool = False  # starts as zeros because its parts do not cover it


@dataclass(frozen=True)
class Build:
    """What every layer is built with.

    tensor: the ranks that cut heads, widths and the vocabulary among them. expert: those that hold different experts,
    data: those that hold the same weights for different requests; one rank each today. quantization: how the weights of
    linear maps are stored in fewer bits; None: as floats of `dtype`. kv_dtype: of the KV cache; None: `dtype`. path: of
    the module that is built, in the decoder. Raises ConfigError where the bound backend does not take these.
    """

    dtype: torch.dtype
    device: torch.device
    tensor: ParallelGroup = field(default_factory=ParallelGroup)
    expert: ParallelGroup = field(default_factory=ParallelGroup)
    data: ParallelGroup = field(default_factory=ParallelGroup)
    quantization: Quantization | None = None
    kv_dtype: torch.dtype | None = None
    path: str = ""

    def __post_init__(self) -> None:
        assert self.expert.size == self.data.size == 1, "experts and requests are not spread over ranks yet"
        if self.quantization is not None and self.quantization.has_integers:
            check_quantized(self.quantization.name, asked=self.quantization.every is not None)
        check_dtype(self.dtype)

    def within(self, name: str) -> Build:
        """For a module of that name within the one that is built."""
        return replace(self, path=self._named(name))

    def storage(self, parameter: str) -> Storage | None:
        """Of the weight of a linear map, by its name within the module; None: floats."""
        return None if self.quantization is None else self.quantization.storage(self._named(parameter))

    def biased(self, parameter: str, roles: Iterable[str], own: bool = False) -> tuple[str, ...]:
        """The roles of a weight's parts that have a bias. own: the model's configuration gives all of them one.

        With static activations the model's is in the weight's own, of integers; only the checkpoint's scheme gives
        one beside that.
        """
        storage = self.storage(parameter)
        own = own and (storage is None or storage.activations != "static")
        known = {} if self.quantization is None else self.quantization.biases
        found = known.get(self._named(parameter), frozenset())
        return tuple(role for role in roles if own or role in found)

    def share_width(self, n: int, down: str) -> Share:
        """This rank's share of the width of a gated feed-forward layer, the inputs of its parameter `down`.

        With 4 bits or groups it is a multiple of the bound backend's step. Where that leaves zeros at the end anyway,
        a larger step may let more inputs share a scale: the share is the one whose weights take the fewest bytes.
        """
        storage = self.storage(down)
        if storage is None or not (storage.group or storage.bits == 4):
            return self.tensor.share(n)
        least, group = group_step(), storage.group or 0
        if n % (least * self.tensor.size) == 0:
            return self.tensor.share(n, least)
        steps = [least, *(step for step in range(2 * least, group + 1, least) if group % step == 0)]
        return min((self.tensor.share(n, step) for step in steps), key=lambda share: _bytes(storage, share.width))

    def head_step(self, head_dim: int, o: str) -> int:
        """Of how many heads a rank should have a multiple, so that its inputs of the parameter `o` cut no group into
        pieces that the bound backend has no product for; 1 where it has none for the groups themselves."""
        storage, step = self.storage(o), group_step()
        if storage is None or not storage.group or storage.group % step:
            return 1
        return step // math.gcd(step, head_dim)

    def parameter(self, *shape: int, dtype: torch.dtype | None = None, padded: bool = False) -> nn.Parameter:
        """An unfilled parameter; `padded` ones start as zeros because their parts do not cover them."""
        make = torch.zeros if padded else torch.empty
        return nn.Parameter(make(shape, dtype=dtype or self.dtype, device=self.device), requires_grad=False)

    def weight(self, operation: Op, argument: str, wanted: Wanted) -> Weight:
        """An unfilled weight, stored as the bound backend takes it for that argument."""
        return self.weights(operation, {argument: wanted})[argument]

    def weights(self, operation: Op, wanted: dict[str, Wanted]) -> dict[str, Weight]:
        """The unfilled weights of an operation, by argument: packed as the bound backend takes them, if it does.

        See `Op.packed`.
        """
        plain = {argument: _layout(one, self.dtype) for argument, one in wanted.items()}
        packed = operation.packed(plain)
        return {argument: self._unfilled(packed[argument], one.padded) for argument, one in wanted.items()}

    def _unfilled(self, layout: Layout, padded: bool) -> Weight:
        data = self.parameter(*layout.stored, dtype=layout.dtype, padded=padded)
        beside: dict[str, Any] = {
            # only the rank with the first inputs adds the bias of integers, the others add zeros
            name: self.parameter(*one.stored, dtype=one.dtype, padded=padded or name == "quant_bias")
            for name, one in layout.beside.items()
        }
        return Weight(layout, data, **beside)

    def _named(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def _bytes(storage: Storage, width: int) -> float:
    """Of what a gated feed-forward layer has for each hidden value: integers of three weights, float32 scales.

    The inputs of gate and up are not cut, so a whole group shares a scale there.
    """
    group = storage.group or math.inf
    unit = math.gcd(storage.group, width) if storage.group else math.inf
    return width * (3 * storage.bits / 8 + 4 / unit + 2 * 4 / group)


def _layout(wanted: Wanted, dtype: torch.dtype) -> Layout:
    """How a weight lies in torch's own order, integers one in each int8.

    A scale is for so many inputs that no group is cut, neither where a rank's inputs begin nor where they end.
    """
    storage = wanted.storage
    if storage is None:
        return Layout.plain(wanted.shape, wanted.dtype or dtype)
    return Layout.integers(
        wanted.shape,
        bits=storage.bits,
        unit=None if storage.group is None else math.gcd(storage.group, wanted.step or 0, wanted.shape[-1]),
        offsets=storage.offset,
        activations=storage.activations,
        meets=dtype,
    )
