"""The choice of experts by every kind of rule, against the same written with loops in float64."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from atb_models import ops
from atb_models.ops.gating import Gating
from atb_models.ops.table import TABLE

EXPERTS, TOKENS = 12, 40
RULES = [
    Gating(top_k, score, groups, top_groups, group_score, eps, scaling)  # type: ignore[arg-type]
    for top_k, score, (groups, top_groups), group_score, (eps, scaling) in product(
        (1, 4), ("softmax", "sigmoid"), ((1, 1), (4, 2), (3, 3)), ("max", "top2"),
        ((None, 1.0), (None, 16.0), (1e-20, 2.5)),
    )
]  # fmt: skip


def chosen(scores: list[float], bias: list[float], rule: Gating) -> list[tuple[int, float]]:
    """(expert, weight) of one token, the best first."""
    if rule.score == "softmax":
        total = sum(math.exp(score) for score in scores)
        values = [math.exp(score) / total for score in scores]
    else:
        values = [1 / (1 + math.exp(-score)) for score in scores]
    choice = [value + extra for value, extra in zip(values, bias, strict=True)]
    width = len(scores) // rule.groups
    runs = [range(start, start + width) for start in range(0, len(scores), width)]

    def worth(run: range) -> float:
        best = sorted((choice[e] for e in run), reverse=True)
        return best[0] if rule.group_score == "max" else best[0] + best[1]

    allowed = [e for run in sorted(runs, key=worth, reverse=True)[: rule.top_groups] for e in run]
    best = sorted(allowed, key=lambda e: choice[e], reverse=True)[: rule.top_k]
    weights = [values[e] for e in best]
    if rule.renormalize_eps is not None:
        weights = [weight / (sum(weights) + rule.renormalize_eps) for weight in weights]
    return [(e, weight * rule.scaling) for e, weight in zip(best, weights, strict=True)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_chooses_and_weighs_as_written(rule: Gating, biased: bool) -> None:
    ops.bind("reference")
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(TOKENS, EXPERTS, generator=generator)
    bias = torch.randn(EXPERTS, generator=generator) if biased else None
    weights, experts = ops.moe_gating(scores, rule, bias)
    assert weights.dtype == torch.float32 and experts.dtype == torch.int64
    extra = [0.0] * EXPERTS if bias is None else bias.double().tolist()
    for token in range(TOKENS):
        expected = chosen(scores[token].double().tolist(), extra, rule)
        assert experts[token].tolist() == [e for e, _ in expected]
        assert weights[token].tolist() == pytest.approx([weight for _, weight in expected], rel=1e-5)


def test_what_a_graph_shows_of_a_rule() -> None:
    scores, shown = torch.zeros(2, 8), TABLE["MoeGating"].operands
    assert list(shown(scores, Gating(2))) == ["scores_TE", "bias_E", "top_k"]
    assert shown(scores, Gating(2, renormalize_eps=1e-6))["renormalize_eps"] == 1e-6
    grouped = shown(scores, Gating(2, "sigmoid", 4, 2, "top2", None, 2.5), torch.zeros(8))
    assert {name: grouped[name] for name in ("score", "groups", "top_groups", "group_score", "scaling")} == {
        "score": "sigmoid", "groups": 4, "top_groups": 2, "group_score": "top2", "scaling": 2.5
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"top_k": 1, "groups": 2, "top_groups": 3}])
def test_a_rule_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        Gating(**wrong)
