"""The routed experts by the library."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.integers import Integers
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
    gate_up: Tensor | Integers,
    down: Tensor | Integers,
    width: int,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    counter_E: Tensor | None = None,
) -> Tensor:
    """The routed experts of a layer -> [T, H]; each expert's rows are added to `counter_E`, int64.

    out[t] = the sum over k of weights[t, k] * down_e(silu(gate_e x) * up_e x), e = chosen[t, k] (int64). `gate_up` and
    `down` are packed as above, for experts of `width` F, of x's dtype or int8 with scales [E, 2 F] and [E, H]; or
    Integers of one kind, which have their scales themselves. Weights and scales are float32. Sums are float32, the one
    over k in the order of k; silu(gate) * up is rounded to x's dtype, as is the result. Where the activations are int8,
    x becomes so row by row, and silu(gate) * up after it was rounded. Raises ValueError for tensors that do not go
    together and for an expert that there is not.
    """
    check(x_TH, chosen_TK, weights_TK, gate_up, down, width, gate_up_scale, down_scale, counter_E)
    (tokens, hidden), num_experts = x_TH.shape, _stored(gate_up).shape[0]
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


def scratch_floats(
    library: Library, x_TH: Tensor, gate_up: Tensor | Integers, down: Tensor | Integers, width: int, top_k: int
) -> int:
    """Floats that a call works with; the tensors may be on meta."""
    tokens, hidden = x_TH.shape
    call = ExpertsCall(
        gate_up=panel_weight(gate_up, None, 2 * width, hidden), down=panel_weight(down, None, hidden, width),
        tokens=tokens, experts=_stored(gate_up).shape[0], top_k=top_k, format=FORMATS[x_TH.dtype], threads=threads(),
    )  # fmt: skip
    return int(library.experts_scratch(byref(call))) if tokens else 0


def _stored(weight: Tensor | Integers) -> Tensor:
    return weight.data if isinstance(weight, Integers) else weight


def check(
    x_TH: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor | Integers,
    down: Tensor | Integers,
    width: int,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    counter_E: Tensor | None,
) -> None:
    """Raises ValueError for tensors that do not go together."""
    counters = [] if counter_E is None else [counter_E]
    on_cpu("experts", x_TH, chosen_TK, weights_TK, *counters)
    dense("experts", x_TH)
    for whole in (chosen_TK, weights_TK, *counters):
        dense("experts", whole, whole.dim())
    tokens, num_experts = x_TH.shape[0], _stored(gate_up).shape[0]
    if (
        x_TH.dtype not in FLOATS
        or any(x.dtype != torch.int64 for x in (chosen_TK, *counters))
        or weights_TK.dtype != torch.float32
    ):
        raise ValueError(f"experts: x of {x_TH.dtype}, choices of {chosen_TK.dtype} weighted by {weights_TK.dtype}")
    fits = chosen_TK.shape == weights_TK.shape and chosen_TK.shape[0] == tokens
    if isinstance(gate_up, Integers) and isinstance(down, Integers) and gate_up_scale is None and down_scale is None:
        fits = fits and _integers_fit(x_TH, gate_up, down, width)
    else:
        fits = fits and _floats_fit(x_TH, gate_up, down, width, gate_up_scale, down_scale)
    if not fits or any(counter.shape != (num_experts,) for counter in counters):
        raise ValueError(
            f"experts: x {tuple(x_TH.shape)}, choices {tuple(chosen_TK.shape)}, weights {tuple(weights_TK.shape)},"
            f" packed weights {tuple(_stored(gate_up).shape)} and {tuple(_stored(down).shape)} of width {width}"
            " do not go together"
        )


def _integers_fit(x_TH: Tensor, gate_up: Integers, down: Integers, width: int) -> bool:
    """Whether the shapes do; raises ValueError for what does not go together within one weight, or is of two kinds."""
    hidden, stack = x_TH.shape[1], gate_up.data.shape[:1]
    for part, outputs in ((gate_up, 2 * width), (down, hidden)):
        part.check("experts", tuple(stack), gate_up_panels=part is gate_up)
        if part.outputs != outputs:
            return False
    kinds = [(part.bits, part.activations) for part in (gate_up, down)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"experts: weights of two kinds, {kinds[0]} and {kinds[1]}")
    return gate_up.inputs == hidden and down.inputs == width


def _floats_fit(
    x_TH: Tensor,
    gate_up: Tensor | Integers,
    down: Tensor | Integers,
    width: int,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
) -> bool:
    """The same for weights of floats, or of int8 that are computed as floats."""
    scales = [scale for scale in (gate_up_scale, down_scale) if scale is not None]
    if isinstance(gate_up, Integers) or isinstance(down, Integers):
        raise ValueError(f"experts: weights of two kinds, or integers with {len(scales)} scales beside their own")
    on_cpu("experts", gate_up, down, *scales)
    for whole in (gate_up, down, *scales):
        dense("experts", whole, whole.dim())
    if (
        gate_up.dtype not in (x_TH.dtype, torch.int8)
        or down.dtype != gate_up.dtype
        or any(x.dtype != torch.float32 for x in scales)
        or len(scales) != (2 if gate_up.dtype == torch.int8 else 0)
    ):
        raise ValueError(
            f"experts: x of {x_TH.dtype}, weights of {gate_up.dtype} and {down.dtype} with {len(scales)} scales"
        )
    hidden, num_experts = x_TH.shape[1], gate_up.shape[0]
    return (
        tuple(gate_up.shape) == packed_gate_up_shape(num_experts, width, hidden)
        and tuple(down.shape) == (num_experts, *packed_shape(hidden, width))
        and (gate_up_scale is None or gate_up_scale.shape == (num_experts, 2 * width))
        and (down_scale is None or down_scale.shape == (num_experts, hidden))
    )
