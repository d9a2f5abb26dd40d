"""Rotary positions with the write to the cache: the library against exact results and, to the bit, against torch."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from atb_models.ops import attention
from atb_models.ops.native.library import Library
from atb_models.ops.native.rope import rope_and_cache
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS, assert_close
from tests.records import kv_cache, slots_step


@dataclass
class Case:
    """q, k and v are views of one fused result; the planes of the cache are views of one tensor."""

    q_TND: Tensor
    k_TMD: Tensor
    v_TMD: Tensor
    angle_TD: Tensor
    planes: Tensor  # [P, 2, S, M, D]
    slots_T: Tensor

    def run(self, library: Library, tokens: slice = slice(None)) -> Tensor:
        """Of these tokens; writes to the planes."""
        rows = (self.q_TND, self.k_TMD, self.v_TMD, self.angle_TD.cos(), self.angle_TD.sin())
        slots_T = self.slots_T[tokens]
        return rope_and_cache(library, *(x[tokens] for x in rows), self.planes[:, 0], self.planes[:, 1], slots_T)


def draw(
    dtype: torch.dtype,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    half: int,
    blocks: int = 5,
    block_size: int = 16,
) -> Case:
    """With slots at both edges of the first and the last block, where there are tokens enough."""
    fused = torch.randn(tokens, heads + 2 * kv_heads, head_dim).to(dtype)
    last = blocks * block_size - 1
    slots = torch.randperm(last + 1)
    edges = torch.tensor([0, block_size - 1, last + 1 - block_size, last]).unique()
    slots = torch.cat((edges, slots[~torch.isin(slots, edges)]))[:tokens].int()
    planes = torch.randn(blocks, 2, block_size, kv_heads, head_dim).to(dtype)
    return Case(*fused.split([heads, kv_heads, kv_heads], dim=1), torch.rand(tokens, half) * 6, planes, slots)


def exact(x: Tensor, angle_TD: Tensor) -> Tensor:
    half = angle_TD.shape[1]
    a, b, rest = x.double().split([half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = angle_TD.double().cos()[:, None], angle_TD.double().sin()[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


HEADS = [[4, 4, 128, 64], [6, 2, 80, 40], [3, 1, 16, 8], [4, 2, 64, 16], [2, 1, 7, 3]]


@pytest.mark.parametrize(
    ("library", "dtype", "heads", "kv_heads", "head_dim", "half"),
    crossed(LEVELS, DTYPES, HEADS),
    indirect=["library"],
)
def test_results(library: Library, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, half: int) -> None:
    case = draw(dtype, 29, heads, kv_heads, head_dim, half)
    before = case.planes.clone()
    rotated = case.run(library)
    assert_close(rotated, exact(case.q_TND, case.angle_TD))
    block, offset = case.slots_T // 16, case.slots_T % 16
    assert_close(case.planes[block, 0, offset], exact(case.k_TMD, case.angle_TD))
    assert torch.equal(case.planes[block, 1, offset], case.v_TMD)
    case.planes[block, :, offset] = before[block, :, offset]
    assert torch.equal(case.planes, before)  # nothing else was written


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_torch(library: Library, dtype: torch.dtype) -> None:
    """Of random shapes; alone, in company and with several threads, and with numbers that are none."""
    shapes = random.Random(0)
    for number in range(12):
        kv_heads, half = shapes.randint(1, 9), shapes.choice((1, 3, 8, 16, 20, 40, 64, 100))
        tokens = shapes.choice((1, 1, 4, 37, 80))
        blocks = shapes.choice(((5, 16), (80, 1), (1, 128)))
        case = draw(dtype, tokens, kv_heads * shapes.randint(1, 4), kv_heads, 2 * half, half, *blocks)
        if number % 3 == 0:
            case.q_TND[-1, 0, 0], case.k_TMD[-1, 0, -1] = float("inf"), float("nan")
        cache = kv_cache(*(case.planes[:, plane].clone() for plane in (0, 1)))
        step = slots_step(case.slots_T)
        rows = (case.q_TND, case.k_TMD, case.v_TMD, case.angle_TD.cos(), case.angle_TD.sin())
        expected = attention.rope_and_cache.reference(*rows, cache, step)
        torch.set_num_threads(1 + number % 3)
        rotated = case.run(library)
        results = zip((rotated, case.planes[:, 0], case.planes[:, 1]), (expected, *cache.values()), strict=True)
        for ours, theirs in results:
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
        case.planes.zero_()
        alone = torch.cat([case.run(library, slice(token, token + 1)) for token in range(tokens)])
        assert torch.equal(alone.nan_to_num(), rotated.nan_to_num())
        block, offset = case.slots_T // cache.k_PSMD.shape[1], case.slots_T % cache.k_PSMD.shape[1]
        assert torch.equal(case.planes[block, 0, offset].nan_to_num(), cache.k_PSMD[block, offset].nan_to_num())


def test_no_tokens(library: Library) -> None:
    case = draw(torch.float16, 0, 4, 2, 32, 16)
    before = case.planes.clone()
    assert case.run(library).shape == (0, 4, 32) and torch.equal(case.planes, before)


def test_refusals(library: Library) -> None:
    q, k, v = torch.randn(3, 4, 32), torch.randn(3, 2, 32), torch.randn(3, 2, 32)
    cos, sin, caches = torch.rand(3, 16), torch.rand(3, 16), [torch.zeros(2, 8, 2, 32) for _ in range(2)]
    good = [q, k, v, cos, sin, *caches, torch.tensor([0, 5, 15], dtype=torch.int32)]
    refused = [
        (0, q.half(), "float16"),
        (0, q.transpose(1, 2).contiguous().transpose(1, 2), "do not lie together"),
        (1, k[:, :1], "do not go together"),
        (2, v[:2], "do not go together"),
        (3, cos.double(), "tables of torch.float64"),
        (3, torch.rand(3, 17), "do not go together"),
        (4, sin[:, :8], "do not go together"),
        (5, caches[0].transpose(2, 3).contiguous().transpose(2, 3), "do not lie together"),
        (5, caches[0].to("meta"), "a tensor on meta"),
        (6, caches[1][:1], "do not go together"),
        (7, torch.tensor([0, 5, 16], dtype=torch.int32), "a slot that the cache does not have"),
        (7, torch.tensor([0, -1, 3], dtype=torch.int32), "a slot that the cache does not have"),
        (7, torch.tensor([0, 5, 15]), "slots of torch.int64"),
    ]
    for place, wrong, match in refused:
        with pytest.raises(ValueError, match=match):
            rope_and_cache(library, *good[:place], wrong, *good[place + 1 :])
    assert not caches[0].any() and not caches[1].any()  # refused before anything was written
