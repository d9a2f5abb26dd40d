"""The two sublayers of a decoder layer, each with the norm before it, as composite operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from atb_models.ops.attention import attending, caching, paged_attention, planes_by_name, rope_and_cache
from atb_models.ops.basic import add, add_rms_norm, linear, rms_norm, swiglu
from atb_models.ops.cost import Cost, nbytes
from atb_models.ops.gating import Gating, moe_gating
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.moe import moe_experts, router, shared_expert_gate, touched_experts
from atb_models.ops.quantized.experts import quant_moe_experts, quantizing_flops
from atb_models.ops.quantized.linear import quant_linear
from atb_models.ops.step import StepInput
from atb_models.ops.table import op
from atb_models.ops.weight import Weight


@dataclass(eq=False)
class Norm:
    """The norm before a sublayer, or of each head."""

    weight_H: Tensor
    eps: float

    def __call__(self, x_TH: Tensor | None, residual_TH: Tensor) -> tuple[Tensor, Tensor]:
        """(norm of the sum, the sum); without x, in the first layer, the residual is the sum."""
        if x_TH is None:
            return rms_norm(residual_TH, self.weight_H, self.eps), residual_TH
        return add_rms_norm(x_TH, residual_TH, self.weight_H, self.eps)


@dataclass(eq=False)
class AttentionSublayer:
    """Plain attention: heads N, KV heads M, `qkv` [(N + 2 M) D, H], queries first, then keys; `o` [H, N D].

    q_norm, k_norm: of each head's query and key, [D], before they are turned, where the family has them.
    bound: what the backend keeps of it from step to step.
    """

    norm: Norm
    qkv: Weight
    qkv_bias_O: Tensor | None
    o: Weight
    o_bias_H: Tensor | None
    heads: int
    kv_heads: int
    head_dim: int
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    bound: Any = field(default=None, init=False)

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.head_dim**-0.5)


@dataclass(frozen=True)
class MlpWeights:
    """`gate_up` [2 F, H], gate above up; `down` [H, F]."""

    gate_up: Weight
    down: Weight


@dataclass(frozen=True)
class RoutedWeights:
    """`router` [E, H] with the bias of its choice [E]; of the experts `gate_up` [E, 2 F, H] and `down` [E, H, F].

    shared_gate_1H: how much of the shared experts a token takes, where the family has it.
    """

    router: Weight
    router_bias_E: Tensor | None
    gating: Gating
    gate_up: Weight
    down: Weight
    shared_gate_1H: Tensor | None


@dataclass(eq=False)
class FeedForwardSublayer:
    """An MLP; or routed experts, beside which `mlp` is that of the shared experts, None where there are none.

    bound: what the backend keeps of it from step to step.
    """

    norm: Norm
    mlp: MlpWeights | None
    routed: RoutedWeights | None
    bound: Any = field(default=None, init=False)


def _attention_operands(
    x_TH: Tensor | None,
    residual_TH: Tensor,
    sublayer: AttentionSublayer,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> dict[str, Any]:
    norm = {"x_TH": x_TH, "residual_TH": residual_TH, "norm_weight_H": sublayer.norm.weight_H, "eps": sublayer.norm.eps}
    qkv = {"qkv_weight_OH": sublayer.qkv, "qkv_bias_O": sublayer.qkv_bias_O}
    for name, of_heads in (("q", sublayer.q_norm), ("k", sublayer.k_norm)):
        qkv |= {} if of_heads is None else {f"{name}_norm_weight_D": of_heads.weight_H}
    tables = {"cos_TD": cos_TD, "sin_TD": sin_TD, **planes_by_name(cache), "slots_T": step.slots_T}
    lengths = {"query_lens": step.query_lens, "kv_lens": step.kv_lens, "scale": sublayer.scale}
    output = {"o_weight_HI": sublayer.o, "o_bias_H": sublayer.o_bias_H, **_activations(sublayer.qkv, sublayer.o)}
    return {**norm, **qkv, **tables, "block_table_BC": step.block_table_BC, **lengths, **output}


def _activations(*weights: Weight) -> dict[str, str]:
    """Shown where weights meet int8 activations, which a sublayer makes of its rows of floats itself."""
    return {} if all(weight.layout.activations == "float" for weight in weights) else {"activations": "int8"}


def _attention_cost(
    out: tuple[Tensor, Tensor],
    x_TH: Tensor | None,
    residual_TH: Tensor,
    sublayer: AttentionSublayer,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> Cost:
    """The FLOPs of the parts. Rows between them stay where they are made; keys and values go to the cache."""
    tokens = residual_TH.shape[0]
    rotated = tokens * (sublayer.heads + sublayer.kv_heads) * sublayer.head_dim
    products = tokens * (_flops(sublayer.qkv) + _flops(sublayer.o))
    biases = tokens * sum(bias.numel() for bias in (sublayer.qkv_bias_O, sublayer.o_bias_H) if bias is not None)
    read = nbytes(sublayer.qkv_bias_O, sublayer.o_bias_H, cos_TD, sin_TD, step.slots_T)
    read += sublayer.qkv.nbytes + sublayer.o.nbytes
    projections = Cost(products + biases + 3 * rotated, read) + _head_norms_cost(tokens, sublayer)
    kept = tokens * sublayer.kv_heads, sublayer.head_dim
    written = caching(*kept, "k", cache) + caching(*kept, "v", cache)
    attention = attending(sublayer.heads, sublayer.head_dim, cache, step)
    return _norm_cost(out, x_TH, residual_TH, sublayer.norm) + projections + written + attention


@op(
    "AttentionSublayer",
    cost=_attention_cost,
    operands=_attention_operands,
    in_parts=True,
    products=("x_TH", "residual_TH", "qkv_weight_OH", "o_weight_HI"),
)
def attention_sublayer(
    x_TH: Tensor | None,
    residual_TH: Tensor,
    sublayer: AttentionSublayer,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> tuple[Tensor, Tensor]:
    """(attention of the norm of the sum, the sum) of x and the residual stream -> two [T, H].

    Without x the residual is the sum. On several ranks each has its share of the first result.
    """
    x_TH, residual_TH = sublayer.norm(x_TH, residual_TH)
    qkv_TND = _product(x_TH, sublayer.qkv, sublayer.qkv_bias_O).view(len(x_TH), -1, sublayer.head_dim)
    q_TND, k_TMD, v_TMD = qkv_TND.split((sublayer.heads, sublayer.kv_heads, sublayer.kv_heads), dim=1)
    if (of_q := sublayer.q_norm) is not None and (of_k := sublayer.k_norm) is not None:
        q_TND, k_TMD = rms_norm(q_TND, of_q.weight_H, of_q.eps), rms_norm(k_TMD, of_k.weight_H, of_k.eps)
    q_TND = rope_and_cache(q_TND, k_TMD, v_TMD, cos_TD, sin_TD, cache, step)
    out_TND = paged_attention(q_TND, cache, step, sublayer.scale)
    return _product(out_TND.flatten(1), sublayer.o, sublayer.o_bias_H), residual_TH


def _head_norms_cost(tokens: int, sublayer: AttentionSublayer) -> Cost:
    """Their FLOPs and weights; the heads stay where they are."""
    normed = ((sublayer.heads, sublayer.q_norm), (sublayer.kv_heads, sublayer.k_norm))
    weights = [(heads, norm.weight_H) for heads, norm in normed if norm is not None]
    flops = sum(4 * tokens * heads * sublayer.head_dim for heads, _ in weights)
    return Cost(flops, nbytes(*(weight_D for _, weight_D in weights)))


def _flops(weight_OI: Weight) -> int:
    """Of the product with a row, and of making that int8 where the weight takes it so."""
    outputs, inputs = weight_OI.shape
    return 2 * outputs * inputs + (0 if weight_OI.layout.activations == "float" else inputs)


def _product(x_TI: Tensor, weight_OI: Weight, bias_O: Tensor | None = None) -> Tensor:
    """By floats, or by int8 activations, as the weight takes them."""
    product = linear if weight_OI.layout.activations == "float" else quant_linear
    return product(x_TI, weight_OI, bias_O)


def _feed_forward_operands(
    x_TH: Tensor, residual_TH: Tensor, sublayer: FeedForwardSublayer, counter_E: Tensor | None = None
) -> dict[str, Any]:
    shown: dict[str, Any] = {"x_TH": x_TH, "residual_TH": residual_TH, "norm_weight_H": sublayer.norm.weight_H}
    shown["eps"] = sublayer.norm.eps
    if (routed := sublayer.routed) is not None:
        shown |= {"router_weight_EH": routed.router, "router_bias_E": routed.router_bias_E}
        shown |= {"experts_gate_up_weight_EGH": routed.gate_up, "experts_down_weight_EHF": routed.down}
        shown |= {"shared_gate_weight_1H": routed.shared_gate_1H, "counter_E": counter_E}
        shown["top_k"] = routed.gating.top_k
    if (mlp := sublayer.mlp) is not None:
        shown |= {"gate_up_weight_GH": mlp.gate_up, "down_weight_HF": mlp.down}
    parts = (part for part in (sublayer.routed, sublayer.mlp) if part is not None)
    return shown | _activations(*(weight for part in parts for weight in (part.gate_up, part.down)))


def _feed_forward_cost(
    out: tuple[Tensor, Tensor],
    x_TH: Tensor,
    residual_TH: Tensor,
    sublayer: FeedForwardSublayer,
    counter_E: Tensor | None = None,
) -> Cost:
    """The FLOPs of the parts. Rows between them stay where they are made.

    Which experts are read does not come out of a call, so that their expected number counts, the exact one of a token.
    """
    tokens, hidden = x_TH.shape
    total = _norm_cost(out, x_TH, residual_TH, sublayer.norm)
    if (mlp := sublayer.mlp) is not None:
        flops = _flops(mlp.gate_up) + _flops(mlp.down) + 5 * mlp.down.shape[1]
        total += Cost(tokens * flops, mlp.gate_up.nbytes + mlp.down.nbytes)
    if (routed := sublayer.routed) is not None:
        total += _routed_cost(tokens, routed, counter_E)
        total += Cost(0 if mlp is None else tokens * hidden)
    return total


def _routed_cost(tokens: int, routed: RoutedWeights, counter_E: Tensor | None) -> Cost:
    (experts, hidden, width), gating = routed.down.shape, routed.gating
    rows, scores = tokens * gating.top_k, tokens * experts
    touched = touched_experts(experts, rows, gating.top_k)
    flops = 2 * scores * hidden + gating.flops(scores, rows, routed.router_bias_E is not None)
    flops += rows * (6 * hidden * width + 5 * width + 2 * hidden) + (0 if counter_E is None else experts)
    flops += quantizing_flops(routed.gate_up, routed.down, tokens, gating.top_k)
    flops += 0 if routed.shared_gate_1H is None else 3 * tokens * hidden
    weights = touched / experts * (routed.gate_up.nbytes + routed.down.nbytes) + routed.router.nbytes
    read = weights + nbytes(routed.router_bias_E, routed.shared_gate_1H, counter_E)
    return Cost(flops, read, nbytes(counter_E))


@op(
    "FeedForwardSublayer",
    cost=_feed_forward_cost,
    operands=_feed_forward_operands,
    in_parts=True,
    products=(
        "x_TH",
        "residual_TH",
        "gate_up_weight_GH",
        "down_weight_HF",
        "experts_gate_up_weight_EGH",
        "experts_down_weight_EHF",
    ),
)
def feed_forward_sublayer(
    x_TH: Tensor, residual_TH: Tensor, sublayer: FeedForwardSublayer, counter_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(feed-forward of the norm of the sum, the sum) of x and the residual stream -> two [T, H].

    counter_E: the tokens of each routed expert are added to it. On several ranks each has its share of the first
    result.
    """
    x_TH, residual_TH = sublayer.norm(x_TH, residual_TH)
    if (routed := sublayer.routed) is None:
        assert sublayer.mlp is not None
        return _mlp(x_TH, sublayer.mlp), residual_TH
    weights_TK, experts_TK = moe_gating(router(x_TH, routed.router), routed.gating, routed.router_bias_E)
    by_floats = routed.gate_up.layout.activations == routed.down.layout.activations == "float"
    experts = moe_experts if by_floats else quant_moe_experts
    y_TH = experts(x_TH, routed.gate_up, routed.down, weights_TK, experts_TK, counter_E)
    if sublayer.mlp is None:
        return y_TH, residual_TH
    shared_TH = _mlp(x_TH, sublayer.mlp)
    if routed.shared_gate_1H is not None:
        shared_TH = shared_expert_gate(shared_TH, x_TH, routed.shared_gate_1H)
    return add(y_TH, shared_TH), residual_TH


def _mlp(x_TH: Tensor, mlp: MlpWeights) -> Tensor:
    return _product(swiglu(_product(x_TH, mlp.gate_up)), mlp.down)


def _norm_cost(out: tuple[Tensor, Tensor], x_TH: Tensor | None, residual_TH: Tensor, norm: Norm) -> Cost:
    """What is read of the stream, and what is written of it and of the sublayer's own result."""
    if x_TH is None:
        return Cost(4 * residual_TH.numel(), nbytes(residual_TH, norm.weight_H), nbytes(out[0]))
    return Cost(5 * residual_TH.numel(), nbytes(x_TH, residual_TH, norm.weight_H), nbytes(*out))
