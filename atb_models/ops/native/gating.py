"""The router and the choice of experts by the library."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, scratch, threads
from atb_models.ops.native.linear import linear
from atb_models.ops.native.structs import GatingCall


@dataclass(frozen=True)
class Gate:
    """How scores become weights: see `moe_gating`."""

    top_k: int
    sigmoid: bool = False
    renormalize_eps: float | None = None
    scaling: float = 1.0


def moe_gating(library: Library, scores_TE: Tensor, gate: Gate, bias_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `top_k` most probable experts -> weights [T, K] float32, experts [T, K] int64, the most probable first.

    Probabilities are the softmax over all experts, or each score's sigmoid; `bias_E` is added for the choice alone.
    `renormalize_eps`: the weights are divided by their sum plus this; then they are multiplied by `scaling`.
    Of equal experts the one with the lower number is first. Raises ValueError.
    """
    given = [x for x in (scores_TE, bias_E) if x is not None]
    on_cpu("MoeGating", *given)
    tokens, experts = scores_TE.shape
    for x in given:
        dense("MoeGating", x, x.dim())
        if x.dtype != torch.float32 or x.shape[-1] != experts:
            raise ValueError(f"MoeGating: scores {tuple(scores_TE.shape)} and a tensor {tuple(x.shape)} of {x.dtype}")
    if not 0 < gate.top_k <= experts:
        raise ValueError(f"MoeGating: the {gate.top_k} best of {experts} experts")
    weights_TK = torch.empty(tokens, gate.top_k, dtype=torch.float32)
    experts_TK = torch.empty(tokens, gate.top_k, dtype=torch.int64)
    call = GatingCall(
        scores_TE.data_ptr(),
        None if bias_E is None else bias_E.data_ptr(),
        weights_TK.data_ptr(),
        experts_TK.data_ptr(),
        None,
        tokens,
        experts,
        gate.top_k,
        gate.sigmoid,
        gate.renormalize_eps is not None,
        threads(),
        gate.renormalize_eps or 0.0,
        gate.scaling,
    )
    call.scratch = scratch(library.gating_scratch(byref(call)))
    refuse(library.gating(byref(call)), "MoeGating")
    return weights_TK, experts_TK


def route(
    library: Library, x_TH: Tensor, router: Tensor, experts: int, gate: Gate, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`moe_gating` of the scores x W^T in float32; `router` is a packed float32 weight of `experts` rows."""
    return moe_gating(library, linear(library, x_TH, router, experts, out_dtype=torch.float32), gate, bias_E)
