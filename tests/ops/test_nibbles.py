"""4 bits in memory, and which weights a backend packs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atb_models import ops
from atb_models.ops.quantized.nibbles import pack_nibbles, packed_width, unpack_nibbles
from atb_models.ops.weight import NIBBLES, Layout, Weight


def test_two_to_a_byte_by_hand() -> None:
    """The even input in the low half, in two's complement; the last half of an odd row is 0."""
    packed = torch.full((2, 3), 0xEE, dtype=torch.uint8)
    pack_nibbles(torch.tensor([[1, -1, 7, -8, 2], [-8, 7, 0, 0, -3]], dtype=torch.int8), packed)
    assert packed.tolist() == [[0xF1, 0x87, 0x02], [0x78, 0x00, 0x0D]]


@pytest.mark.parametrize("inputs", [1, 2, 7, 16])
def test_all_values_come_back(inputs: int) -> None:
    values = torch.randint(-8, 8, (3, 50, inputs), dtype=torch.int8)
    packed = torch.empty(3, 50, packed_width(inputs), dtype=torch.uint8)
    for unit in range(3):
        pack_nibbles(values[unit], packed[unit])
    assert torch.equal(unpack_nibbles(packed, inputs), values)
    assert unpack_nibbles(packed.to("meta"), inputs).shape == values.shape


def test_bytes_of_a_layout() -> None:
    """Integers, then float32 scales and offsets, then what static activations need; of a stack for each expert."""
    plain = Layout.integers((6, 40), bits=4, unit=8, offsets=True)
    assert plain.nbytes == 240 + 2 * 4 * 30 and NIBBLES.layout(plain).nbytes == 120 + 2 * 4 * 30
    static = Layout.integers((5, 6, 40), activations="static")
    assert static.nbytes == 1200 + 4 * 30 + 2 * 4 * 5 + 4 * 30
    assert static.beside["quant_bias"] == Layout.plain((5, 6), torch.int32)
    assert static.beside["input_scale"].shape == (5, 1)


class Taking:
    """A packing of int8 weights without offsets."""

    name, rows = "whole", 1

    def takes(self, plain: Layout) -> bool:
        return plain.bits == 8 and not plain.offsets

    def layout(self, plain: Layout) -> Layout:
        return replace(plain, packing=self)

    def pack(self, band_OI: torch.Tensor, weight: Weight, unit: int | None, first: int = 0) -> None:
        raise NotImplementedError


def test_a_backend_packs_all_weights_of_an_operation_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two products in one operation those that are stored alike; 4 bits lie as nibbles where nobody takes them."""
    op, taking = ops.moe_experts, Taking()
    monkeypatch.setattr(op, "packings", {"gate_up_EGH": taking, "down_EHF": taking})
    monkeypatch.setattr(op, "backend", "whole")
    int8, int4 = Layout.integers((2, 6, 8)), Layout.integers((2, 8, 3), bits=4)
    floats, offsets = Layout.plain((2, 6, 8), torch.float16), Layout.integers((2, 6, 8), offsets=True)

    def packed(gate_up: Layout, down: Layout) -> list[object]:
        return [layout.packing for layout in op.packed({"gate_up_EGH": gate_up, "down_EHF": down}).values()]

    assert packed(int8, int8) == packed(floats, floats) == [taking, taking]
    assert packed(int8, int4) == [None, NIBBLES] and packed(int4, int4) == [NIBBLES, NIBBLES]
    assert packed(int8, floats) == packed(int8, offsets) == packed(offsets, offsets) == [None, None]
    monkeypatch.setattr(op, "packings", {"down_EHF": taking})
    assert packed(int8, int8) == [None, None]
    monkeypatch.setattr(op, "backend", "reference")  # its parts multiply, each as its weight is stored
    assert packed(int8, int8) == packed(offsets, floats) == [None, taking]
    assert packed(int4, int8) == [NIBBLES, taking] and packed(int8, int4) == [None, NIBBLES]
    monkeypatch.setattr(op, "packings", {})
    assert packed(int4, int8) == [NIBBLES, None]
