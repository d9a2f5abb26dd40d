"""The routed experts by the library."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, scratch, threads
from atb_models.ops.native.linear import FLOATS, packed_shape, panel_weight
from atb_models.ops.native.structs import FORMATS, ExpertsCall


def packed_gate_up_shape(experts: int, width: int, hidden: int) -> tuple[int, int, int, int]:
    """[E, panels, hidden, 16] of the experts' [2 F, H]: a panel of the gate, then one of up, in turns."""
    panels, inputs, panel = packed_shape(width, hidden)
    return experts, 2 * panels, inputs, panel


def experts(
    library: Library,
    x_TH: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    width: int,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    counter_E: Tensor | None = None,
) -> Tensor:
    """The routed experts of a layer -> [T, H]; each expert's rows are added to `counter_E`, int64.

    out[t] = the sum over k of weights[t, k] * down_e(silu(gate_e x) * up_e x), e = chosen[t, k] (int64). `gate_up` and
    `down` are packed as above, for experts of `width` F, of x's dtype or int8 with scales [E, 2 F] and [E, H]; weights
    and scales are float32. Sums are float32, the one over k in the order of k; silu(gate) * up is rounded to x's dtype,
    as is the result. Raises ValueError for tensors that do not go together and for an expert that there is not.
    """
    check(x_TH, chosen_TK, weights_TK, gate_up, down, width, gate_up_scale, down_scale, counter_E)
    (tokens, hidden), num_experts = x_TH.shape, gate_up.shape[0]
    out_TH = torch.empty(tokens, hidden, dtype=x_TH.dtype)
    call = ExpertsCall(
        x_TH.data_ptr(),
        chosen_TK.data_ptr(),
        weights_TK.data_ptr(),
        panel_weight(gate_up, gate_up_scale, 2 * width, hidden),
        panel_weight(down, down_scale, hidden, width),
        out_TH.data_ptr(),
        None if counter_E is None else counter_E.data_ptr(),
        None,
        x_TH.stride(0),
        tokens,
        num_experts,
        chosen_TK.shape[1],
        FORMATS[x_TH.dtype],
        threads(),
    )
    if not tokens:
        return out_TH
    call.scratch = scratch(library.experts_scratch(byref(call)))
    refuse(library.experts(byref(call)), f"the choices go beyond {num_experts} experts")
    return out_TH


def scratch_floats(library: Library, x_TH: Tensor, gate_up: Tensor, down: Tensor, width: int, top_k: int) -> int:
    """Floats that a call works with; the tensors may be on meta."""
    tokens, hidden = x_TH.shape
    call = ExpertsCall(
        gate_up=panel_weight(gate_up, None, 2 * width, hidden), down=panel_weight(down, None, hidden, width),
        tokens=tokens, experts=gate_up.shape[0], top_k=top_k, format=FORMATS[x_TH.dtype], threads=threads(),
    )  # fmt: skip
    return int(library.experts_scratch(byref(call))) if tokens else 0


def check(
    x_TH: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    width: int,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    counter_E: Tensor | None,
) -> None:
    """Raises ValueError for tensors that do not go together."""
    scales = [scale for scale in (gate_up_scale, down_scale) if scale is not None]
    counters = [] if counter_E is None else [counter_E]
    on_cpu("experts", x_TH, chosen_TK, weights_TK, gate_up, down, *scales, *counters)
    dense("experts", x_TH)
    for whole in (chosen_TK, weights_TK, gate_up, down, *scales, *counters):
        dense("experts", whole, whole.dim())
    (tokens, hidden), num_experts = x_TH.shape, gate_up.shape[0]
    if (
        x_TH.dtype not in FLOATS
        or gate_up.dtype not in (x_TH.dtype, torch.int8)
        or down.dtype != gate_up.dtype
        or any(x.dtype != torch.int64 for x in (chosen_TK, *counters))
        or any(x.dtype != torch.float32 for x in (weights_TK, *scales))
        or len(scales) != (2 if gate_up.dtype == torch.int8 else 0)
    ):
        raise ValueError(
            f"experts: x of {x_TH.dtype}, weights of {gate_up.dtype} and {down.dtype} with {len(scales)} scales,"
            f" choices of {chosen_TK.dtype} weighted by {weights_TK.dtype}"
        )
    if (
        chosen_TK.shape != weights_TK.shape
        or chosen_TK.shape[0] != tokens
        or tuple(gate_up.shape) != packed_gate_up_shape(num_experts, width, hidden)
        or tuple(down.shape) != (num_experts, *packed_shape(hidden, width))
        or (gate_up_scale is not None and gate_up_scale.shape != (num_experts, 2 * width))
        or (down_scale is not None and down_scale.shape != (num_experts, hidden))
        or any(counter.shape != (num_experts,) for counter in counters)
    ):
        raise ValueError(
            f"experts: x {tuple(x_TH.shape)}, choices {tuple(chosen_TK.shape)}, weights {tuple(weights_TK.shape)},"
            f" packed weights {tuple(gate_up.shape)} and {tuple(down.shape)} of width {width} do not go together"
        )
