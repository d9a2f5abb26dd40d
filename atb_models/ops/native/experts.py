"""The routed experts by the library, and their weights as it takes them."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, scratch, threads
from atb_models.ops.native.linear import FLOATS, pack_into, packed_shape
from atb_models.ops.native.structs import FORMATS, ExpertsCall


def packed_gate_up_shape(experts: int, width: int, hidden: int) -> tuple[int, int, int, int]:
    """[E, panels, hidden, 16] of the experts' [2 F, H]: a panel of the gate, then one of up, in turns."""
    panels, inputs, panel = packed_shape(width, hidden)
    return experts, 2 * panels, inputs, panel


def pack_gate_up(library: Library, weight_EGH: Tensor) -> Tensor:
    """[E, 2 F, H], gate above up, packed: in its own memory where it fills it, with one expert's as scratch."""
    experts, both, hidden = weight_EGH.shape
    packed = _room(weight_EGH, packed_gate_up_shape(experts, both // 2, hidden))
    for expert in range(experts):
        copy = weight_EGH[expert].clone()
        for part, half in enumerate(copy.chunk(2)):
            pack_into(library, half, packed[expert, part:], step=2)
    return packed


def pack_down(library: Library, weight_EHF: Tensor) -> Tensor:
    """[E, H, F] packed to [E, panels, F, 16]: in its own memory where it fills it, with one expert's as scratch."""
    experts, hidden, width = weight_EHF.shape
    packed = _room(weight_EHF, (experts, *packed_shape(hidden, width)))
    for expert in range(experts):
        pack_into(library, weight_EHF[expert].clone(), packed[expert])
    return packed


def _room(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    on_cpu("pack", weight)
    fits = weight.is_contiguous() and weight.numel() == torch.Size(shape).numel()
    return weight.view(shape) if fits else torch.empty(shape, dtype=weight.dtype)


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
) -> tuple[Tensor, Tensor]:
    """The routed experts of a layer -> [T, H], and how many rows each expert had, [E] int64.

    out[t] = the sum over k of weights[t, k] * down_e(silu(gate_e x) * up_e x), e = chosen[t, k] (int64). `gate_up` and
    `down` are packed as above, for experts of `width` F, of x's dtype or int8 with scales [E, 2 F] and [E, H]; weights
    and scales are float32. Sums are float32, the one over k in the order of k; silu(gate) * up is rounded to x's dtype,
    as is the result. Raises ValueError for tensors that do not go together and for an expert that there is not.
    """
    _check(x_TH, chosen_TK, weights_TK, gate_up, down, width, gate_up_scale, down_scale)
    (tokens, hidden), num_experts = x_TH.shape, gate_up.shape[0]
    out_TH = torch.empty(tokens, hidden, dtype=x_TH.dtype)
    counts_E = torch.empty(num_experts, dtype=torch.int64)
    call = ExpertsCall(
        x_TH.data_ptr(),
        chosen_TK.data_ptr(),
        weights_TK.data_ptr(),
        gate_up.data_ptr(),
        down.data_ptr(),
        None if gate_up_scale is None else gate_up_scale.data_ptr(),
        None if down_scale is None else down_scale.data_ptr(),
        out_TH.data_ptr(),
        counts_E.data_ptr(),
        None,
        x_TH.stride(0),
        tokens,
        hidden,
        width,
        num_experts,
        chosen_TK.shape[1],
        FORMATS[x_TH.dtype],
        FORMATS[gate_up.dtype],
        threads(),
    )
    if not tokens:
        return out_TH, counts_E.zero_()
    call.scratch = scratch(library.experts_scratch(byref(call)))
    refuse(library.experts(byref(call)), f"the choices go beyond {num_experts} experts")
    return out_TH, counts_E


def _check(
    x_TH: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    width: int,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> None:
    scales = [scale for scale in (gate_up_scale, down_scale) if scale is not None]
    on_cpu("experts", x_TH, chosen_TK, weights_TK, gate_up, down, *scales)
    dense("experts", x_TH)
    for whole in (chosen_TK, weights_TK, gate_up, down, *scales):
        dense("experts", whole, whole.dim())
    (tokens, hidden), num_experts = x_TH.shape, gate_up.shape[0]
    if (
        x_TH.dtype not in FLOATS
        or gate_up.dtype not in (x_TH.dtype, torch.int8)
        or down.dtype != gate_up.dtype
        or chosen_TK.dtype != torch.int64
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
    ):
        raise ValueError(
            f"experts: x {tuple(x_TH.shape)}, choices {tuple(chosen_TK.shape)}, weights {tuple(weights_TK.shape)},"
            f" packed weights {tuple(gate_up.shape)} and {tuple(down.shape)} of width {width} do not go together"
        )
