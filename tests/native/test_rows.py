"""Norms, SwiGLU, the shared expert's gate and gating of the library."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn.functional import silu

from atb_models.ops.gating import Gating
from atb_models.ops.gating import moe_gating as reference_gating
from atb_models.ops.native.gating import moe_gating, route
from atb_models.ops.native.library import Library
from atb_models.ops.native.rows import add_rms_norm, rms_norm, shared_expert_gate, swiglu
from tests.native.cases import DTYPES, assert_close, pack

WIDTHS = [16, 88, 469, 2048]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(library: Library, dtype: torch.dtype, width: int) -> None:
    x, residual = torch.randn(37, width).to(dtype), torch.randn(37, width).to(dtype)
    for weight in (torch.randn(width), torch.randn(width).to(dtype)):
        total = x + residual
        exact = total.double() / (total.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
        normed, summed = add_rms_norm(library, x, residual, weight, 1e-5)
        assert torch.equal(summed, total)
        assert_close(normed, exact)
        assert torch.equal(rms_norm(library, total, weight, 1e-5), normed)
        for row in (0, 36):
            assert torch.equal(rms_norm(library, total[row : row + 1], weight, 1e-5), normed[row : row + 1])
    heads = x[:36].view(6, 6, width)[:, 1:]  # a part of a fused result, cut into heads
    assert torch.equal(
        rms_norm(library, heads, weight, 1e-5).flatten(0, 1), rms_norm(library, heads.flatten(0, 1), weight, 1e-5)
    )
    wide = torch.randn(37, 3 * width).to(dtype)  # rows of a fused result
    part = wide[:, width : 2 * width]
    assert torch.equal(rms_norm(library, part, weight, 1e-5), rms_norm(library, part.contiguous(), weight, 1e-5))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activations(library: Library, dtype: torch.dtype, width: int) -> None:
    gate, up = (6 * torch.randn(21, width)).to(dtype), torch.randn(21, width).to(dtype)
    gate[0, :4] = torch.tensor([100.0, -100.0, 0.0, -60000.0])
    assert_close(swiglu(library, torch.cat((gate, up), dim=1)), silu(gate.double()) * up.double())
    x, weight = torch.randn(21, 64).to(dtype), torch.randn(1, 64).to(dtype)
    exact = up.double() * (x.double() @ weight.double().t()).sigmoid()
    assert_close(shared_expert_gate(library, up, x, weight), exact)


@pytest.mark.parametrize("experts, top_k", [(64, 6), (60, 4), (8, 8), (5, 1), (257, 8)])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gating(library: Library, experts: int, top_k: int, score: Literal["softmax", "sigmoid"]) -> None:
    scores, bias = torch.randn(70, experts) * 3, torch.randn(experts) / 10
    exact = scores.double().sigmoid() if score == "sigmoid" else scores.double().softmax(-1)
    for added in (None, bias):
        rank = exact if added is None else exact + added.double()
        expected = rank.topk(top_k).indices
        weights, chosen = moe_gating(library, scores, Gating(top_k, score), added)
        assert torch.equal(chosen, expected)
        assert_close(weights, exact.gather(1, chosen))
        for eps in (1e-20, 1e-2):
            scaled, _ = moe_gating(library, scores, Gating(top_k, score, renormalize_eps=eps, scaling=2.5), added)
            picked = exact.gather(1, chosen)
            assert_close(scaled, 2.5 * picked / (picked.sum(-1, keepdim=True) + eps))


@pytest.mark.parametrize("group_score", ["max", "top2"])
@pytest.mark.parametrize("biased", [False, True])
def test_gating_within_groups(library: Library, group_score: Literal["max", "top2"], biased: bool) -> None:
    bias = torch.randn(64) / 5 if biased else None
    for groups, top_groups, top_k in ((8, 4, 6), (8, 1, 8), (32, 3, 3), (4, 4, 5)):
        gating = Gating(top_k, "sigmoid", groups, top_groups, group_score, 1e-20, 1.5)
        scores = torch.randn(50, 64)
        weights, chosen = moe_gating(library, scores, gating, bias)
        expected = reference_gating.reference(scores, gating, bias)
        assert torch.equal(chosen, expected[1])
        assert_close(weights, expected[0].double(), times=3)


def test_gating_of_equal_and_broken_scores(library: Library) -> None:
    scores = torch.zeros(4, 20)
    scores[1] = float("nan")
    scores[2, 7] = float("nan")
    scores[3, 4], scores[3, 9] = float("inf"), 1.0
    weights, chosen = moe_gating(library, scores, Gating(3))
    assert chosen[0].tolist() == [0, 1, 2]  # the lower number first
    assert all(len(set(row)) == 3 and set(row) <= set(range(20)) for row in chosen.tolist())
    assert weights[1].isnan().all() and weights[0].allclose(torch.full((3,), 0.05))
    _, chosen = moe_gating(library, scores, Gating(20, "sigmoid"))
    assert chosen[2, -1] == 7 and sorted(chosen[2].tolist()) == list(range(20))  # a NaN is last


def test_route(library: Library) -> None:
    x, router = torch.randn(9, 96).bfloat16(), torch.randn(16, 96)
    exact = (x.double() @ router.double().t()).softmax(-1)
    weights, chosen = route(library, x, pack(library, router), 16, Gating(4))
    assert torch.equal(chosen, exact.topk(4).indices)
    assert_close(weights, exact.topk(4).values)


def test_refusals(library: Library) -> None:
    x, weight = torch.randn(3, 32), torch.randn(32)
    with pytest.raises(ValueError, match="do not go together"):
        rms_norm(library, x, weight[:31], 1e-5)
    with pytest.raises(ValueError, match="do not go together"):
        add_rms_norm(library, x, x.half(), weight, 1e-5)
    with pytest.raises(ValueError, match="float64"):
        rms_norm(library, x.double(), weight, 1e-5)
    with pytest.raises(ValueError, match="do not lie together"):
        swiglu(library, x.t())
    with pytest.raises(ValueError, match="no two halves"):
        swiglu(library, x[:, :31])
    with pytest.raises(ValueError, match="do not go together"):
        shared_expert_gate(library, x, x[:2], weight[None])
    with pytest.raises(ValueError, match="the 33 best of 32"):
        moe_gating(library, x, Gating(33))
    with pytest.raises(ValueError, match="a tensor"):
        moe_gating(library, x, Gating(3), weight[:5].contiguous())
