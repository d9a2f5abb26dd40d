"""The feed-forward of a layer by the library, as one call."""

from __future__ import annotations

import torch
from torch import Tensor

from atb_models.ops import sublayers
from atb_models.ops.native import experts, linear
from atb_models.ops.native.gating import check_rule, rule
from atb_models.ops.native.library import Library
from atb_models.ops.native.packing import operand
from atb_models.ops.native.structs import FORMATS, FeedForwardLayer
from atb_models.ops.native.sublayers.call import (
    BoundSublayer,
    address,
    check_norm,
    check_vector,
    result_shapes,
    run,
    scratch_floats,
)
from atb_models.ops.sublayers import FeedForwardSublayer, MlpWeights, RoutedWeights
from atb_models.ops.weight import Weight

NAME = "FeedForwardSublayer"


class BoundFeedForward(BoundSublayer):
    """A layer and the counter of its experts."""

    def __init__(self, sublayer: FeedForwardSublayer, counter_E: Tensor | None) -> None:
        dtype = sublayer.norm.weight_H.dtype
        (hidden,) = sublayer.norm.weight_H.shape
        _check_layer(sublayer, counter_E, hidden, dtype)
        self.counter_E = counter_E
        super().__init__(_layer(sublayer, counter_E), _tensors(sublayer, counter_E), hidden, dtype)


def _has_form(sublayer: FeedForwardSublayer) -> bool:
    """Whether the library has one for these weights."""
    return not any(weight.layout.is_plain for weight in _weights(sublayer))


def bound_feed_forward(sublayer: FeedForwardSublayer, counter_E: Tensor | None) -> BoundFeedForward | None:
    """The layer as the C side takes it, made anew where it has changed; None: it has no form for its weights.

    Raises ValueError for tensors that do not go together.
    """
    bound: BoundFeedForward | None = sublayer.bound
    if bound is None or bound.counter_E is not counter_E or not bound.holds():
        if not _has_form(sublayer):
            return None
        bound = sublayer.bound = BoundFeedForward(sublayer, counter_E)
    return bound


def feed_forward_sublayer(
    library: Library,
    x_TH: Tensor,
    residual_TH: Tensor,
    sublayer: FeedForwardSublayer,
    counter_E: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the operation of this name does; in parts for weights that the library has no form for.

    The layer's weights are checked when it is called first. Raises ValueError for tensors that do not go together.
    """
    bound = bound_feed_forward(sublayer, counter_E)
    if bound is None:
        return sublayers.feed_forward_sublayer.reference(x_TH, residual_TH, sublayer, counter_E)
    return run(NAME, library.feed_forward_sublayer, bound, x_TH, residual_TH)


def feed_forward_sublayer_shape(
    library: Library,
    x_TH: Tensor,
    residual_TH: Tensor,
    sublayer: FeedForwardSublayer,
    counter_E: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The results and the workspace on meta tensors, and whether the counter is written."""
    if not _has_form(sublayer):
        return sublayers.feed_forward_sublayer.reference(x_TH, residual_TH, sublayer, counter_E)
    _check_shapes(sublayer)
    if counter_E is not None:
        counter_E.add_(torch.empty_like(counter_E))
    floats = scratch_floats(library.feed_forward_sublayer, _layer(sublayer, None), len(residual_TH))
    _workspace = residual_TH.new_empty(floats, dtype=torch.float32)
    return result_shapes(NAME, x_TH, residual_TH, len(sublayer.norm.weight_H))


def _weights(sublayer: FeedForwardSublayer) -> list[Weight]:
    mlp, routed = sublayer.mlp, sublayer.routed
    of_mlp = [] if mlp is None else [mlp.gate_up, mlp.down]
    return of_mlp + ([] if routed is None else [routed.router, routed.gate_up, routed.down])


def _tensors(sublayer: FeedForwardSublayer, counter_E: Tensor | None) -> list[Tensor | None]:
    weights, routed = _weights(sublayer), sublayer.routed
    more = [] if routed is None else [routed.router_bias_E, routed.shared_gate_1H]
    held = [tensor for weight in weights for tensor in weight.tensors]
    return [sublayer.norm.weight_H, counter_E, *held, *more]


def _layer(sublayer: FeedForwardSublayer, counter_E: Tensor | None) -> FeedForwardLayer:
    norm, mlp, routed = sublayer.norm, sublayer.mlp, sublayer.routed
    weight_format = FORMATS[norm.weight_H.dtype]
    layer = FeedForwardLayer(
        norm=norm.weight_H.data_ptr(), format=weight_format, norm_format=weight_format, eps=norm.eps
    )
    if mlp is not None:
        for name, weight in (("gate_up", mlp.gate_up), ("down", mlp.down)):
            setattr(layer, name, linear.panel_weight(*operand(weight), *weight.shape))
    if routed is not None:
        named = (("router", routed.router), ("experts_gate_up", routed.gate_up), ("experts_down", routed.down))
        for name, weight in named:
            setattr(layer, name, linear.panel_weight(*operand(weight), *weight.shape[-2:]))
        layer.experts, layer.top_k = routed.router.shape[0], routed.gating.top_k
        for field, value in rule(routed.gating).items():
            setattr(layer, field, value)
        layer.router_bias, layer.counter = address(routed.router_bias_E), address(counter_E)
        if routed.shared_gate_1H is not None:
            layer.shared_gate = routed.shared_gate_1H.data_ptr()
            layer.shared_gate_format = FORMATS[routed.shared_gate_1H.dtype]
    return layer


def _check_shapes(sublayer: FeedForwardSublayer) -> None:
    """Raises ValueError for shapes that do not go together; the tensors may be on meta."""
    (hidden,) = sublayer.norm.weight_H.shape
    mlp, routed = sublayer.mlp, sublayer.routed
    fits = mlp is not None or routed is not None
    if mlp is not None:
        width = mlp.down.shape[1]
        fits = mlp.gate_up.shape == (2 * width, hidden) and mlp.down.shape == (hidden, width)
    if routed is not None:
        count, width = routed.router.shape[0], routed.down.shape[2]
        fits = fits and routed.router.shape == (count, hidden) and routed.down.shape == (count, hidden, width)
        fits = fits and routed.gate_up.shape == (count, 2 * width, hidden)
        fits = fits and (mlp is not None or routed.shared_gate_1H is None)
    if not fits:
        shapes = [weight.shape for weight in _weights(sublayer)]
        raise ValueError(f"{NAME}: a norm of {hidden} and weights {shapes} do not go together")


def _check_layer(sublayer: FeedForwardSublayer, counter_E: Tensor | None, hidden: int, dtype: torch.dtype) -> None:
    _check_shapes(sublayer)
    check_norm(NAME, sublayer.norm, hidden)
    if sublayer.mlp is not None:
        _check_mlp(sublayer.mlp, dtype)
    if sublayer.routed is not None:
        _check_routed(sublayer.routed, counter_E, hidden, dtype)


def _check_mlp(mlp: MlpWeights, dtype: torch.dtype) -> None:
    for weight in (mlp.gate_up, mlp.down):
        outputs, inputs = weight.shape
        packed, scale_O = operand(weight)
        linear.check(torch.empty(0, inputs, dtype=dtype), packed, outputs, None, scale_O, dtype)


def _check_routed(routed: RoutedWeights, counter_E: Tensor | None, hidden: int, dtype: torch.dtype) -> None:
    count, top_k, x_TH = routed.router.shape[0], routed.gating.top_k, torch.empty(0, hidden, dtype=dtype)
    check_rule(routed.gating, count)
    linear.check(x_TH, routed.router.data, count, None, None, torch.float32)
    chosen_TK, weights_TK = torch.empty(0, top_k, dtype=torch.int64), torch.empty(0, top_k)
    (gate_up, gate_up_scale), (down, down_scale) = operand(routed.gate_up), operand(routed.down)
    stacks = gate_up, down, routed.down.shape[2], gate_up_scale, down_scale
    experts.check(x_TH, chosen_TK, weights_TK, *stacks, counter_E)
    if routed.router_bias_E is not None:
        check_vector(NAME, "router's bias", routed.router_bias_E, (count,), (torch.float32,))
    if routed.shared_gate_1H is not None:
        check_vector(NAME, "shared experts' gate", routed.shared_gate_1H, (1, hidden))
