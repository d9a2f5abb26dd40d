"""The least time of operations, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atb_models.ops.cost import Cost
from atb_models.plan.chips import FIGURES, Chip
from atb_models.plan.roofline import Arithmetic, Times, arithmetic_of, operation_times

CHIP = Chip(
    name="small", device="one", memory_gb=1, bandwidth_gb_s=10, fp16_tflops=2, bf16_tflops=None, fp32_tflops=0.5,
    link_gb_s=4, latency_us=50, sources=dict.fromkeys(FIGURES, "a test"),
)  # fmt: skip
HALF = Arithmetic(torch.float16, torch.float16)


@pytest.mark.parametrize(
    ("cost", "dtype", "seconds"),
    [
        (Cost(flops=6e9, read=1e6), torch.float16, 3e-3),  # 6 GFLOP at 2 TFLOP/s
        (Cost(flops=6e9, read=1e6), torch.float32, 12e-3),  # at 0.5
        (Cost(flops=6e9, read=1e6), torch.bfloat16, 3e-3),  # unknown: at the fastest
        (Cost(flops=1e6, read=3e7, written=1e7), torch.float16, 4e-3),  # 40 MB at 10 GB/s
        (Cost(flops=1e12, read=1e9, written=1e9, sent=8e6), torch.float16, 50e-6 + 2e-3),  # 8 MB at 4 GB/s
        (Cost(), torch.float16, 0),
    ],
)
def test_an_operation_takes_the_longer_of_its_two_or_its_link(cost: Cost, dtype: torch.dtype, seconds: float) -> None:
    assert operation_times(cost, Arithmetic(dtype, dtype), CHIP, 4).total == pytest.approx(seconds)


def test_the_parts_are_apart_and_add_up() -> None:
    work = operation_times(Cost(flops=2e9, read=1e7), HALF, CHIP, 2)
    assert work == Times(compute=1e-3, memory=1e-3, communication=0, total=1e-3)
    assert work + work * 2 == Times(3e-3, 3e-3, 0, 3e-3)
    collective = operation_times(Cost(flops=2e9, read=1e7, sent=4e6), HALF, CHIP, 2)
    assert collective == Times(0, 0, pytest.approx(1.05e-3), pytest.approx(1.05e-3))


def test_ranks_that_share_a_chip_have_a_part_of_it() -> None:
    shared = replace(CHIP, shared=True)
    for cost in (Cost(flops=2e9), Cost(read=1e7)):
        assert operation_times(cost, HALF, shared, 4).total == pytest.approx(4e-3)
    assert operation_times(Cost(sent=4e6), HALF, shared, 4).total == pytest.approx(50e-6 + 4e-3)


def test_what_binds_an_operation() -> None:
    limits = [
        operation_times(cost, HALF, CHIP, 2).limit
        for cost in (Cost(flops=9e9, read=1e6), Cost(flops=1e6, read=1e7), Cost(sent=1e6), Cost())
    ]
    assert limits == ["compute", "memory", "link", "memory"]


def test_arithmetic_is_in_the_widest_floating_dtype() -> None:
    half, wide, integers = torch.float16, torch.float32, torch.int64
    assert arithmetic_of("Embedding", {"token_ids_T": integers, "weight_VH": half}) == (half, half)
    # the router: 16-bit rows, float32 weights
    assert arithmetic_of("Router", {"x_TH": torch.bfloat16, "weight_EH": wide}) == (wide, wide)
    assert arithmetic_of("MoeInitRouting", {"experts_TK": integers}) == (wide, wide)


def test_the_experts_compute_in_the_dtype_of_their_weights_not_of_the_mixture() -> None:
    of = {"x_TH": torch.bfloat16, "gate_up_EGH": torch.bfloat16, "down_EHF": torch.bfloat16}
    others = {"weights_TK": torch.float32, "experts_TK": torch.int64}
    assert arithmetic_of("MoeExperts", of | others) == (torch.bfloat16, torch.bfloat16)


def test_int8_weights_work_where_the_chip_says() -> None:
    """Beside float activations in those' type, or the one that the chip names; beside int8 at the rate of int8."""
    stored = arithmetic_of("Linear", {"x_TI": torch.float16, "weight_OI": torch.int8, "bias_O": torch.float16})
    whole = arithmetic_of("Linear", {"x_TI": torch.int8, "weight_OI": torch.int8})
    assert stored == (torch.float16, torch.int8) and whole == (torch.int8, torch.int8)
    chip, cost = replace(CHIP, int8_tops=4), Cost(flops=6e9)
    assert operation_times(cost, stored, chip, 1).compute == pytest.approx(3e-3)
    assert operation_times(cost, stored, replace(chip, int8_weights_in="fp32"), 1).compute == pytest.approx(12e-3)
    for device in (chip, replace(chip, int8_weights_in="fp32")):
        assert operation_times(cost, whole, device, 1).compute == pytest.approx(1.5e-3)
