"""The router and the choice of experts by the library."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.gating import Gating
from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, scratch, threads
from atb_models.ops.native.linear import linear
from atb_models.ops.native.structs import GatingCall


def moe_gating(
    library: Library, scores_TE: Tensor, gating: Gating, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The router's output to each token's experts -> weights [T, K] float32, experts [T, K] int64, the best first.

    The rule is that of the operation of this name. Of equal experts the one with the lower number is first; a NaN is
    chosen where nothing else is left. Raises ValueError.
    """
    given = [x for x in (scores_TE, bias_E) if x is not None]
    on_cpu("MoeGating", *given)
    tokens, experts = scores_TE.shape
    for x in given:
        dense("MoeGating", x, x.dim())
        if x.dtype != torch.float32 or x.shape[-1] != experts:
            raise ValueError(f"MoeGating: scores {tuple(scores_TE.shape)} and a tensor {tuple(x.shape)} of {x.dtype}")
    check_rule(gating, experts)
    weights_TK = torch.empty(tokens, gating.top_k, dtype=torch.float32)
    experts_TK = torch.empty(tokens, gating.top_k, dtype=torch.int64)
    call = GatingCall(
        scores_TE.data_ptr(),
        None if bias_E is None else bias_E.data_ptr(),
        weights_TK.data_ptr(),
        experts_TK.data_ptr(),
        tokens=tokens,
        experts=experts,
        top_k=gating.top_k,
        threads=threads(),
        **rule(gating),
    )
    call.scratch = scratch(library.gating_scratch(byref(call)))
    refuse(library.gating(byref(call)), "MoeGating")
    return weights_TK, experts_TK


def rule(gating: Gating) -> dict[str, float]:
    """The rule as the C side takes it."""
    return {
        "sigmoid": gating.score == "sigmoid",
        "groups": gating.groups,
        "top_groups": gating.top_groups,
        "group_best": 1 if gating.group_score == "max" else 2,
        "renormalize": gating.renormalize_eps is not None,
        "renormalize_eps": gating.renormalize_eps or 0.0,
        "scaling": gating.scaling,
    }


def check_rule(gating: Gating, experts: int) -> None:
    """Raises ValueError for a rule that so many experts do not fit."""
    if gating.top_k > experts or experts % gating.groups:
        raise ValueError(f"MoeGating: the {gating.top_k} best of {experts} experts in {gating.groups} groups")


def route(
    library: Library, x_TH: Tensor, router: Tensor, experts: int, gating: Gating, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`moe_gating` of the scores x W^T in float32; `router` is a packed float32 weight of `experts` rows."""
    return moe_gating(library, linear(library, x_TH, router, experts, out_dtype=torch.float32), gating, bias_E)
