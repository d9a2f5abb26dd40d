"""The gated feed-forward layer and its mixture-of-experts form, cut across ranks by width."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build, Wanted
from atb_models.layers.linear import column_linear, row_linear
from atb_models.layers.norm import RmsNorm
from atb_models.layers.parameter import Part, cut, hold, whole
from atb_models.ops.gating import Gating
from atb_models.ops.sublayers import FeedForwardSublayer, MlpWeights, RoutedWeights
from atb_models.ops.table import Op
from atb_models.ops.weight import Activations


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x)); the caller sums the ranks' results."""

    counter_E: Tensor | None = None  # an MLP has no experts to count the tokens of

    def __init__(self, build: Build, hidden: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        share = build.share_width(width, "down.weight")
        self.gate_up = column_linear(build.within("gate_up"), hidden, {"gate": share, "up": share}, bias=bias)
        self.down = row_linear(build.within("down"), share, hidden, bias=bias)

    def forward(self, x_TH: Tensor) -> Tensor:
        return self.down(ops.swiglu(self.gate_up(x_TH)))

    @property
    def weights(self) -> MlpWeights | None:
        """As the operation of a sublayer takes them; None with a bias, which that has no place for."""
        if self.gate_up.bias is not None or self.down.bias is not None:
            return None
        return MlpWeights(self.gate_up.stored, self.down.stored)


class Router(nn.Module):
    """Scores of all experts; float32 whatever the model's dtype, the same on every rank.

    `bias`: where the family has one, what is added to the scores for the choice of experts alone.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, build: Build, hidden: int, num_experts: int, *, bias: bool = False) -> None:
        super().__init__()
        self.stored = build.weight(ops.router, "weight_EH", Wanted((num_experts, hidden), dtype=torch.float32))
        hold(self, "weight", self.stored, {"": Part((num_experts, hidden))})
        self.register_parameter("bias", None)
        if bias:
            whole(self, "bias", build.parameter(num_experts, dtype=torch.float32))

    def forward(self, x_TH: Tensor) -> Tensor:
        return ops.router(x_TH, self.stored)


class Experts(nn.Module):
    """The routed experts' weights stacked: every rank holds a slice of each expert's width."""

    def __init__(self, build: Build, hidden: int, width: int, num_experts: int) -> None:
        super().__init__()
        share = build.share_width(width, "down")
        local, span, padded = share.width, share.span, share.padded
        self.num_experts = num_experts
        gate_up: dict[str, Part] = {}
        down: dict[str, Part] = {}
        for expert in range(num_experts):
            gate_up[f"gate.{expert}"] = cut((width, hidden), 0, span, 0, expert)
            gate_up[f"up.{expert}"] = cut((width, hidden), 0, span, local, expert)
            down[f"{expert}"] = cut((hidden, width), 1, span, 0, expert)
        wanted = {
            "gate_up_EGH": Wanted((num_experts, 2 * local, hidden), build.storage("gate_up"), padded=padded),
            "down_EHF": Wanted((num_experts, hidden, local), build.storage("down"), padded=padded),
        }
        operation = _experts_operation(one.storage.activations for one in wanted.values() if one.storage is not None)
        self.stored_gate_up, self.stored_down = build.weights(operation, wanted).values()
        stored = (self.stored_gate_up, self.stored_down)
        self.operation = _experts_operation(one.layout.activations for one in stored)
        hold(self, "gate_up", self.stored_gate_up, gate_up)
        hold(self, "down", self.stored_down, down)

    def forward(self, x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, counter_E: Tensor | None) -> Tensor:
        return self.operation(x_TH, self.stored_gate_up, self.stored_down, weights_TK, experts_TK, counter_E)


def _experts_operation(activations: Iterable[Activations]) -> Op:
    """The one for products with such activations."""
    return ops.moe_experts if set(activations) <= {"float"} else ops.quant_moe_experts


class SharedGate(nn.Module):
    """How much of the shared experts' output each token takes; the same on every rank."""

    weight: nn.Parameter

    def __init__(self, build: Build, hidden: int) -> None:
        super().__init__()
        whole(self, "weight", build.parameter(1, hidden))

    def forward(self, shared_TH: Tensor, x_TH: Tensor) -> Tensor:
        return ops.shared_expert_gate(shared_TH, x_TH, self.weight)


class MoE(nn.Module):
    """Routed experts plus shared experts; the caller sums the ranks' results, once for both."""

    def __init__(
        self,
        build: Build,
        hidden: int,
        *,
        num_experts: int,
        gating: Gating,
        width: int,
        shared_width: int,
        shared_gate: bool,
        router_bias: bool = False,
    ) -> None:
        super().__init__()
        self.gating = gating
        self.router = Router(build, hidden, num_experts, bias=router_bias)
        self.experts = Experts(build.within("experts"), hidden, width, num_experts)
        self.shared = Mlp(build.within("shared"), hidden, shared_width) if shared_width else None
        self.shared_gate = SharedGate(build, hidden) if shared_gate else None
        self.counter_E: Tensor | None = None

    @property
    def weights(self) -> RoutedWeights:
        """As the operation of a sublayer takes them, without those of the shared experts."""
        gate_1H = None if self.shared_gate is None else self.shared_gate.weight
        router, experts = self.router, self.experts
        chosen = router.stored, router.bias, self.gating
        return RoutedWeights(*chosen, experts.stored_gate_up, experts.stored_down, gate_1H)

    def count_tokens(self) -> Tensor:
        """Start counting the tokens each expert is given -> the counter, [E] int64."""
        self.counter_E = torch.zeros(self.experts.num_experts, dtype=torch.int64, device=self.router.weight.device)
        return self.counter_E

    def forward(self, x_TH: Tensor) -> Tensor:
        weights_TK, experts_TK = ops.moe_gating(self.router(x_TH), self.gating, self.router.bias)
        y_TH = self.experts(x_TH, weights_TK, experts_TK, self.counter_E)
        if self.shared is None:
            return y_TH
        shared_TH = self.shared(x_TH)
        if self.shared_gate is not None:
            shared_TH = self.shared_gate(shared_TH, x_TH)
        return ops.add(y_TH, shared_TH)


def feed_forward_sublayer(norm: RmsNorm, layer: Mlp | MoE) -> FeedForwardSublayer | None:
    """A feed-forward layer behind `norm` as one operation takes it; None for what always runs in parts: a bias of the
    norm or of a linear map."""
    described, mlp = norm.described(), layer if isinstance(layer, Mlp) else layer.shared
    if described is None or (mlp is not None and mlp.weights is None):
        return None
    weights = None if mlp is None else mlp.weights
    if isinstance(layer, Mlp):
        return FeedForwardSublayer(described, weights, None)
    return FeedForwardSublayer(described, weights, layer.weights)
