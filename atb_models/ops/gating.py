"""How a token's experts are chosen and weighed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from atb_models.ops.cost import Cost, cost
from atb_models.ops.table import op


@dataclass(frozen=True)
class Gating:
    """The rule of a mixture-of-experts layer.

    score: what turns the router's output into scores, over all experts or each alone. groups: equal runs of experts,
    of which only the best `top_groups` can be chosen from; group_score: a group is worth its best choice, or the sum
    of its two best. renormalize_eps: None leaves the weights as they are, else they are divided by their sum plus
    this. scaling: what the weights are multiplied by at last.
    """

    top_k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    renormalize_eps: float | None = None
    scaling: float = 1.0

    def __post_init__(self) -> None:
        assert self.top_k >= 1 and 1 <= self.top_groups <= self.groups

    @property
    def is_plain(self) -> bool:
        """True for softmax over all experts: no groups, no scaling."""
        return self.score == "softmax" and self.groups == self.top_groups and self.scaling == 1.0

    def flops(self, scores: int, chosen: int, has_bias: bool) -> int:
        """Of so many scores, so many of which are chosen."""
        flops = 4 * scores if self.score == "softmax" else 3 * scores  # maximum, exp, add, divide; negate is in exp
        flops += scores if has_bias else 0
        flops += 0 if self.renormalize_eps is None else 2 * chosen
        return flops + (0 if self.scaling == 1.0 else chosen)


def _operands(scores_TE: Tensor, gating: Gating, bias_E: Tensor | None = None) -> dict[str, Any]:
    """What differs from the plain rule is shown; the rule has no more to it elsewhere."""
    shown: dict[str, Any] = {"scores_TE": scores_TE, "bias_E": bias_E, "top_k": gating.top_k}
    if gating.renormalize_eps is not None:
        shown["renormalize_eps"] = gating.renormalize_eps
    if not gating.is_plain:
        shown |= {"score": gating.score, "scaling": gating.scaling}
    if gating.groups > 1:
        shown |= {"groups": gating.groups, "top_groups": gating.top_groups, "group_score": gating.group_score}
    return shown


def _cost(out: tuple[Tensor, Tensor], scores_TE: Tensor, gating: Gating, bias_E: Tensor | None = None) -> Cost:
    flops = gating.flops(scores_TE.numel(), out[0].numel(), bias_E is not None)
    return cost(flops, (scores_TE, bias_E), out)


@op("MoeGating", cost=_cost, operands=_operands)
def moe_gating(scores_TE: Tensor, gating: Gating, bias_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The router's output to each token's experts -> weights [T, K] float32, experts [T, K] int64.

    Softmax: Dai et al. 2024, DeepSeekMoE, equations 3 to 5. Groups: DeepSeek-V2, section 2.2.2. Sigmoid and `bias_E`,
    which takes part in the choice and not in the weights: DeepSeek-V3, section 2.1.2.
    """
    if bias_E is None and gating.groups == gating.top_groups:
        weights_TK, experts_TK = _scored(scores_TE, gating).topk(gating.top_k, dim=-1)
    else:
        scored_TE = _scored(scores_TE, gating)
        choice_TE = scored_TE if bias_E is None else scored_TE + bias_E
        experts_TK = _within_groups(choice_TE, gating).topk(gating.top_k, dim=-1).indices
        weights_TK = scored_TE.gather(1, experts_TK)
    if gating.renormalize_eps is not None:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + gating.renormalize_eps)
    return (weights_TK if gating.scaling == 1.0 else weights_TK * gating.scaling), experts_TK


def _scored(scores_TE: Tensor, gating: Gating) -> Tensor:
    return scores_TE.softmax(dim=-1, dtype=torch.float32) if gating.score == "softmax" else scores_TE.sigmoid()


def _within_groups(choice_TE: Tensor, gating: Gating) -> Tensor:
    """The choices, those outside the best groups so low that they are not taken."""
    if gating.groups == gating.top_groups:
        return choice_TE
    grouped_TGE = choice_TE.unflatten(1, (gating.groups, -1))
    best = 1 if gating.group_score == "max" else 2
    worth_TG = grouped_TGE.topk(best, dim=-1).values.sum(dim=-1)
    out_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter_(1, worth_TG.topk(gating.top_groups).indices, False)
    return grouped_TGE.masked_fill(out_TG.unsqueeze(-1), -torch.inf).flatten(1)
