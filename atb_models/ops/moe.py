"""Operations of a mixture-of-experts layer. Expert counts are counts, never running sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atb_models.ops.basic import swiglu
from atb_models.ops.cost import Cost, cost, nbytes
from atb_models.ops.table import op
from atb_models.ops.weight import Weight

# Tokens whose K expert rows are widened to float32 at a time; bounds the workspace to 512 * K * H * 6 bytes.
FINALIZE_TILE = 512


def _router_cost(scores_TE: Tensor, x_TH: Tensor, weight_EH: Weight) -> Cost:
    return Cost(2 * x_TH.numel() * weight_EH.shape[0], nbytes(x_TH) + weight_EH.nbytes, nbytes(scores_TE))


@op("Router", cost=_router_cost)
def router(x_TH: Tensor, weight_EH: Weight) -> Tensor:
    """Expert scores before the softmax -> [T, E] float32; `weight_EH` is float32."""
    return F.linear(x_TH.float(), weight_EH.rows)


def _init_routing_cost(out: tuple[Tensor, Tensor, Tensor], x_TH: Tensor, experts_TK: Tensor, num_experts: int) -> Cost:
    return cost(0, (x_TH, experts_TK), out)


@op("MoeInitRouting", cost=_init_routing_cost)
def moe_init_routing(x_TH: Tensor, experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Copy each token once per chosen expert, sorted by expert.

    Returns x_RH; rows_TK, the row of x_RH that holds token t's k-th choice; counts_E int64, rows of each expert.
    """
    expert_R = experts_TK.flatten()
    order_R = expert_R.argsort(stable=True)
    rows_R = torch.empty_like(order_R)
    rows_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
    counts_E = torch.zeros(num_experts, dtype=torch.int64, device=expert_R.device)
    counts_E.scatter_add_(0, expert_R, torch.ones_like(expert_R))
    token_R = order_R.div(experts_TK.shape[1], rounding_mode="floor")
    return x_TH.index_select(0, token_R), rows_R.view_as(experts_TK), counts_E


def touched_experts(num_experts: int, rows: int, top_k: int) -> float:
    """Experts that get a row, on average, when each token's `top_k` are any: E (1 - (1 - k / E)^T), T = rows / k."""
    return num_experts * (1 - (1 - top_k / num_experts) ** (rows / top_k))


def touched_of(counts_E: Tensor, rows: int, top_k: int) -> float:
    """Experts that have rows: as counted, on meta tensors the expected number."""
    if counts_E.is_meta:
        return touched_experts(len(counts_E), rows, top_k)
    return int(counts_E.count_nonzero())


def _grouped_matmul_cost(out_RO: Tensor, x_RI: Tensor, weight_EOI: Weight, counts_E: Tensor, top_k: int) -> Cost:
    """Only the weights of experts that have rows are read."""
    experts, outputs, _ = weight_EOI.shape
    weights = touched_of(counts_E, x_RI.shape[0], top_k) * (weight_EOI.nbytes / experts)
    return Cost(2 * x_RI.numel() * outputs, nbytes(x_RI, counts_E) + weights, nbytes(out_RO))


def _grouped_matmul_shape(x_RI: Tensor, weight_EOI: Weight, counts_E: Tensor, top_k: int) -> Tensor:
    """The body reads the counts, which meta tensors do not have."""
    experts, outputs, inputs = weight_EOI.shape
    if x_RI.shape[1] != inputs or counts_E.shape != (experts,) or x_RI.shape[0] % top_k:
        raise ValueError(
            f"rows {tuple(x_RI.shape)}, {top_k} a token, do not go with experts {weight_EOI.shape}"
            f" and counts {tuple(counts_E.shape)}"
        )
    if x_RI.dtype != weight_EOI.layout.loaded and not weight_EOI.layout.quantized:
        raise ValueError(f"rows of {x_RI.dtype} do not go with experts of {weight_EOI.layout.loaded}")
    if weight_EOI.layout.is_plain:
        _workspace = weight_EOI.dequantized(x_RI.dtype, 0)
    return x_RI.new_empty(x_RI.shape[0], outputs)


@op("GroupedMatmul", cost=_grouped_matmul_cost, shape=_grouped_matmul_shape)
def grouped_matmul(x_RI: Tensor, weight_EOI: Weight, counts_E: Tensor, top_k: int) -> Tensor:
    """x W_e^T for each expert's own rows, `counts_E` rows for expert e in order -> [R, O].

    `top_k`, the rows of a token, takes no part in the product; the cost rule needs it.
    """
    y_RO = x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])
    for expert, start, stop in expert_spans(counts_E):
        torch.mm(x_RI[start:stop], weight_EOI.dequantized(x_RI.dtype, expert).t(), out=y_RO[start:stop])
    return y_RO


def expert_spans(counts_E: Tensor) -> list[tuple[int, int, int]]:
    """(expert, first row, row after the last) of the experts that have rows; reads the counts on the host."""
    spans, start = [], 0
    for expert, count in enumerate(counts_E.tolist()):
        if count:
            spans.append((expert, start, start + count))
            start += count
    return spans


def _finalize_cost(out_TH: Tensor, y_RH: Tensor, rows_TK: Tensor, weights_TK: Tensor) -> Cost:
    return cost(2 * y_RH.numel(), (y_RH, rows_TK, weights_TK), (out_TH,))


@op("MoeFinalizeRouting", cost=_finalize_cost)
def moe_finalize_routing(y_RH: Tensor, rows_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Sum of each token's K expert rows times their weights, accumulated in float32 -> [T, H] in y's dtype."""
    (num_tokens, top_k), hidden = rows_TK.shape, y_RH.shape[1]
    out_TH = y_RH.new_empty(num_tokens, hidden)
    for start in range(0, num_tokens, FINALIZE_TILE):
        tile = slice(start, min(start + FINALIZE_TILE, num_tokens))
        picked_TKH = y_RH.index_select(0, rows_TK[tile].flatten()).view(-1, top_k, hidden).float()
        out_TH[tile] = torch.bmm(weights_TK[tile].unsqueeze(1), picked_TKH).squeeze(1)
        del picked_TKH  # or it would live on while the next is made
    return out_TH


def _shared_gate_cost(out_TH: Tensor, shared_TH: Tensor, x_TH: Tensor, weight_1H: Tensor) -> Cost:
    flops = 2 * x_TH.numel() + out_TH.numel()  # one sigmoid a row is nothing beside them
    return cost(flops, (shared_TH, x_TH, weight_1H), (out_TH,))


@op("SharedExpertGate", cost=_shared_gate_cost)
def shared_expert_gate(shared_TH: Tensor, x_TH: Tensor, weight_1H: Tensor) -> Tensor:
    """shared * sigmoid(x . w), the gate and the product in float32 -> [T, H] in the dtype of `shared_TH`.

    The gate is the same on every rank, so the ranks' shares of `shared_TH` may be summed afterwards.
    """
    gate_T1 = F.linear(x_TH.float(), weight_1H.float()).sigmoid()
    return (shared_TH * gate_T1).to(shared_TH.dtype)


def experts_cost(
    out_TH: Tensor,
    x_TH: Tensor,
    gate_up_EGH: Weight,
    down_EHF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counter_E: Tensor | None = None,
) -> Cost:
    """Rows between the parts stay where they are made; of the weights the experts are read that have rows."""
    (num_experts, hidden, width), (tokens, top_k) = down_EHF.shape, experts_TK.shape
    rows = tokens * top_k
    if experts_TK.is_meta:
        touched = touched_experts(num_experts, rows, top_k)
    else:
        touched = len(experts_TK.unique())
    weights = touched / num_experts * (gate_up_EGH.nbytes + down_EHF.nbytes)
    flops = rows * (6 * hidden * width + 5 * width + 2 * hidden) + (0 if counter_E is None else num_experts)
    return Cost(flops, nbytes(x_TH, weights_TK, experts_TK, counter_E) + weights, nbytes(out_TH, counter_E))


@op("MoeExperts", cost=experts_cost, in_parts=True, products=("x_TH", "gate_up_EGH", "down_EHF"))
def moe_experts(
    x_TH: Tensor,
    gate_up_EGH: Weight,
    down_EHF: Weight,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counter_E: Tensor | None = None,
) -> Tensor:
    """Sum over each token's K experts of weight * down(silu(gate x) * up x) -> [T, H].

    gate_up [E, 2 F, H], gate above up; down [E, H, F]. counter_E: each expert's tokens are added to it.
    """
    x_RH, rows_TK, counts_E = moe_init_routing(x_TH, experts_TK, gate_up_EGH.shape[0])
    if counter_E is not None:
        count_expert_tokens(counter_E, counts_E)
    top_k = experts_TK.shape[1]
    h_RF = swiglu(grouped_matmul(x_RH, gate_up_EGH, counts_E, top_k))
    return moe_finalize_routing(grouped_matmul(h_RF, down_EHF, counts_E, top_k), rows_TK, weights_TK)


def _count_cost(out: None, total_E: Tensor, counts_E: Tensor) -> Cost:
    return cost(counts_E.numel(), (total_E, counts_E), (total_E,))


@op("CountExpertTokens", cost=_count_cost)
def count_expert_tokens(total_E: Tensor, counts_E: Tensor) -> None:
    """Add this step's rows of each expert to the running statistics."""
    total_E.add_(counts_E)
