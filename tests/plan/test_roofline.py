"""The least time of operations, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from atb_models.ops.cost import Cost
from atb_models.plan.chips import FIGURES, Chip
from atb_models.plan.roofline import Times, operation_times, roofline_seconds, work_dtype

CHIP = Chip(
    name="small", device="one", memory_gb=1, bandwidth_gb_s=10, fp16_tflops=2, bf16_tflops=None, fp32_tflops=0.5,
    link_gb_s=4, latency_us=50, sources=dict.fromkeys(FIGURES, "a test"),
)  # fmt: skip


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
    assert roofline_seconds(cost, dtype, CHIP, 4) == pytest.approx(seconds)


def test_the_parts_are_apart_and_add_up() -> None:
    work = operation_times(Cost(flops=2e9, read=1e7), torch.float16, CHIP, 2)
    assert work == Times(compute=1e-3, memory=1e-3, communication=0, total=1e-3)
    assert work + work * 2 == Times(3e-3, 3e-3, 0, 3e-3)
    collective = operation_times(Cost(flops=2e9, read=1e7, sent=4e6), torch.float16, CHIP, 2)
    assert collective == Times(0, 0, pytest.approx(1.05e-3), pytest.approx(1.05e-3))


def test_ranks_that_share_a_chip_have_a_part_of_it() -> None:
    shared = replace(CHIP, shared=True)
    for cost in (Cost(flops=2e9), Cost(read=1e7)):
        assert roofline_seconds(cost, torch.float16, shared, 4) == pytest.approx(4e-3)
    assert roofline_seconds(Cost(sent=4e6), torch.float16, shared, 4) == pytest.approx(50e-6 + 4e-3)


def test_arithmetic_is_in_the_widest_floating_dtype() -> None:
    assert work_dtype([torch.int64, torch.float16]) == torch.float16
    assert work_dtype([torch.bfloat16, torch.float32]) == torch.float32  # the router: 16-bit rows, float32 weights
    assert work_dtype([torch.int64]) == torch.float32
