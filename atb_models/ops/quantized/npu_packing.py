"""How the NPU's products take weights of integers: order, data types of what lies beside them, and what they lack.

The operators' documents say which forms there are (op-plugin, docs/zh/custom_APIs/torch_npu of torch_npu 2.13). With
activations of floats an operator computes (q + offset) * scale, so offsets are stored negated; both are in the data
type of the activations. With int8 activations weights are symmetric.

| weight | integers | scale |
|---|---|---|
| linear map, 8 bits, floats meet it | int8 [O, I], given as its transposed view | [O], or [O, G] given transposed |
| linear map, 8 bits, int8 meets it | int8 [I, O] | float32 [O]; static and fp16: int64 of its bits |
| experts, 8 bits | int8 [E, I, O] | [E, O]; where int8 meets it float32 for fp16, bfloat16 for bf16 |
| 4 bits | int32 [I, O / 8], eight outputs in each | [O], or [G, O] |
| experts, 4 bits | int32 [E, I, O / 8] | [E, O], or [E, G, O] |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atb_models.errors import ConfigError
from atb_models.ops.weight import WHOLE, Layout, Weight

LARGEST = 65535  # inputs and outputs of a product
GROUP_STEP = 32  # groups are multiples of this, and fewer inputs than a row has
PER_INT32 = 8  # integers of 4 bits


def in_groups(layout: Layout) -> bool:
    """Whether a row of this rank has more than one scale."""
    return layout.unit is not None and layout.unit != layout.shape[-1]


@dataclass(frozen=True)
class Conversions:
    """What only the device's own operators pack: int32 [I, O] from -8 to 7 -> int32 [I, O / 8]; float32 scales [O] ->
    the int64 form of static products."""

    pack_int4: Callable[[Tensor], Tensor]
    quant_param: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NpuPacking:
    """Of linear maps or, `stacked`, of routed experts: experts of floats, and all weights of integers."""

    conversions: Conversions
    stacked: bool

    name = "torch_npu"
    rows = PER_INT32

    def takes(self, plain: Layout) -> bool:
        return plain.quantized or self.stacked

    def layout(self, plain: Layout) -> Layout:
        """See `Packing.layout`."""
        if plain.quantized and (lacking := self._lacking(plain)):
            if plain.activations == "static":
                raise ConfigError(f"npu has no product with static int8 activations for {lacking}")
            assert plain.meets is not None
            floats = replace(Layout.plain(plain.shape, plain.meets), instead=f"npu has no product for {lacking}")
            return self.layout(floats) if self.stacked else floats
        *stack, outputs, inputs = plain.shape
        if self._as_read(plain):
            stored: tuple[int, ...] = plain.shape
        elif plain.quantized and plain.bits == 4:
            stored = (*stack, inputs, outputs // PER_INT32)
        else:
            stored = (*stack, inputs, outputs)
        dtype = torch.int32 if plain.quantized and plain.bits == 4 else plain.dtype
        packed = replace(plain, dtype=dtype, stored=stored, packing=self)
        return replace(packed, beside_as=_Beside(self, packed)) if plain.quantized else packed

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        """See `Packed.pack`."""
        place = weight.data if unit is None else weight.data[unit]
        if self._as_read(weight.layout):
            place[first : first + len(band_OI)].copy_(band_OI)
        elif weight.layout.quantized and weight.layout.bits == 4:
            packed = self.conversions.pack_int4(band_OI.t().to(torch.int32).contiguous())
            place[:, first // PER_INT32 :][:, : packed.shape[1]].copy_(packed)
        else:
            place[:, first : first + len(band_OI)].copy_(band_OI.t())

    def _as_read(self, layout: Layout) -> bool:
        return layout.quantized and not self.stacked and layout.bits == 8 and layout.activations == "float"

    def _lacking(self, plain: Layout) -> str:
        """What a weight has that the operators do not take; "" for what they take."""
        (outputs, inputs), unit = plain.shape[-2:], plain.unit
        if max(outputs, inputs) > LARGEST:
            return f"more than {LARGEST} inputs or outputs"
        if plain.activations != "float" and plain.offsets:
            return "int8 activations with offsets of weights"
        if plain.bits == 4 and outputs % PER_INT32:
            return f"outputs of 4 bits that are no multiple of {PER_INT32}"
        if not in_groups(plain):
            return ""
        if self.stacked and plain.bits == 8:
            return "experts of 8 bits in groups"
        return f"groups of {unit} inputs" if unit and unit % GROUP_STEP else ""


@dataclass(frozen=True)
class _Beside:
    """How the tensors beside such a weight are stored."""

    packing: NpuPacking
    weight: Layout

    def __call__(self, name: str, plain: Layout) -> Layout:
        meets, stacked = self.weight.meets, self.packing.stacked
        assert meets is not None
        if name == "quant_bias":
            return plain
        if name in ("input_scale", "input_offset"):
            return _Converted(_reciprocal if name == "input_scale" else _same).layout(plain, meets)
        if self.weight.activations == "float":
            change = _negated if name == "offset" else _same
            return _Converted(change, self.weight.unit, stacked or self.weight.bits == 4).layout(plain, meets)
        if stacked:
            return _Converted(_same).layout(plain, torch.bfloat16 if meets == torch.bfloat16 else torch.float32)
        if self.weight.activations == "static" and meets == torch.float16:
            return _Converted(self.packing.conversions.quant_param).layout(plain, torch.int64)
        return plain


@dataclass(frozen=True)
class _Converted:
    """Of float32 values beside a weight, [O], or [O, G] for units of inputs, one G alone being left out; `turned`: as
    [G, O]."""

    change: Callable[[Tensor], Tensor]
    unit: int | None = None
    turned: bool = False

    name = "torch_npu"
    rows = WHOLE

    def layout(self, plain: Layout, dtype: torch.dtype) -> Layout:
        """Where the values of `plain` are stored."""
        stored = plain.shape
        if self.unit is not None:
            *stack, outputs, groups = stored
            stored = (*stack, outputs) if groups == 1 else (*stack, groups, outputs) if self.turned else stored
        return replace(plain, dtype=dtype, stored=stored, packing=self)

    def pack(self, band_OI: Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        """See `Packed.pack`."""
        place = weight.data if unit is None else weight.data[unit]
        values = self.change(band_OI)
        place.copy_((values.t() if self.turned else values).reshape(place.shape))


def _same(values: Tensor) -> Tensor:
    return values


def _negated(values: Tensor) -> Tensor:
    return -values


def _reciprocal(values: Tensor) -> Tensor:
    return 1 / values
