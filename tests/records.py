"""The records that operations take, made for tests, and their tensors changed one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from atb_models.layers.build import Build, ParallelGroup
from atb_models.layers.parameter import fillings
from atb_models.layers.storage import Quantization
from atb_models.ops.collectives import Collective
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.step import StepInput
from atb_models.ops.table import Op, recorded
from atb_models.ops.weight import Layout, Weight


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value`, a tensor or a record of tensors, with each of them replaced; anything else as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, LayerCache):
        return LayerCache((name, function(plane)) for name, plane in value.items())
    if isinstance(value, Weight) and not value.layout.quantized:
        return Weight.plain(function(value.rows))
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        held = {name: x for name, x in named.items() if isinstance(x, Tensor) or is_dataclass(x)}
        return replace(value, **{name: map_tensors(function, x) for name, x in held.items()}) if held else value
    return value


def attention_step(
    query_lens: list[int],
    kv_lens: list[int],
    table_BC: Tensor | None = None,
    slots_T: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> StepInput:
    """A step as attention and the cache see it: lengths, the block table, and the slots of its tokens."""

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    none = torch.zeros(0, dtype=torch.int32, device=device)
    return StepInput(
        token_ids_T=none,
        positions_T=none,
        slots_T=none if slots_T is None else slots_T,
        query_starts_B=ints([0, *accumulate(query_lens)]),
        kv_lens_B=ints(kv_lens),
        block_table_BC=none.view(0, 0) if table_BC is None else table_BC,
        logits_rows_L=none,
        query_lens=query_lens,
        kv_lens=kv_lens,
    )


def build_of(
    dtype: torch.dtype,
    rank: int = 0,
    size: int = 1,
    group: Collective | None = None,
    device: str = "cpu",
    quantization: Quantization | None = None,
) -> Build:
    """How one of `size` tensor-parallel ranks builds its layers."""
    return Build(dtype, torch.device(device), tensor=ParallelGroup(rank, size, group), quantization=quantization)


def part_of(model: nn.Module, name: str, role: str = "") -> Tensor:
    """What a part of a plain parameter holds."""
    filling = fillings(model)[name]
    part = filling.parts[role]
    return part.within(filling.matrix(part.unit))


def slots_step(slots_T: Tensor) -> StepInput:
    """A step of which only the slots matter."""
    return attention_step([], [], slots_T=slots_T, device=slots_T.device)


def kv_cache(k_PSMD: Tensor, v_PSMD: Tensor) -> LayerCache:
    """The cache of plain attention."""
    return LayerCache(k=k_PSMD, v=v_PSMD)


def shape_rule(op: Op) -> Callable[..., Any]:
    """The shape rule; of an operation in parts its body, of whose parts each follows its own rule."""
    if not op.in_parts:
        return op.shape or op.reference

    def by_parts(*args: Any) -> Any:
        with recorded(lambda part, run, given: (part.shape or run)(*given)):
            return op.reference(*args)

    return by_parts


def in_layout(plain: Tensor, layout: Layout, *, stack: bool) -> Tensor:
    """The values of a weight, or what is beside them, as a layout has them; of a stack matrix by matrix."""
    if layout.packing is None:
        return plain
    packed = Weight(layout, torch.empty(layout.stored, dtype=layout.dtype).fill_(77))
    for unit, matrix in enumerate(plain) if stack else [(None, plain)]:
        layout.packing.pack(matrix, packed, unit)
    return packed.data
