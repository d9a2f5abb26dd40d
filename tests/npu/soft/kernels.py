"""What the operators compute, on CPU tensors, written from their documents: float32 inside, rounded once at the end.

A kernel checks what only values show. What the documents leave undefined comes out as NaN. A
function here has the name of its operator.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.npu.soft.demands import need


def _norm(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    over = tuple(range(-gamma.dim(), 0))
    inverse = (x.float().square().mean(over, keepdim=True) + epsilon).rsqrt()
    return (x.float() * inverse * gamma.float()).to(x.dtype), inverse


def npu_rms_norm(call: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return _norm(call.input, call.gamma, call.epsilon)


def npu_add_rms_norm(call: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    total = (call.x1.float() + call.x2.float()).to(call.x1.dtype)
    return (*_norm(total, call.gamma, call.epsilon), total)


def npu_swiglu(call: SimpleNamespace) -> Tensor:
    gate, up = call.input.float().chunk(2, call.dim)
    return (F.silu(gate) * up).to(call.input.dtype)


def npu_rotary_mul(call: SimpleNamespace) -> Tensor:
    first, second = call.input.float().chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (call.input.float() * call.r1.float() + turned * call.r2.float()).to(call.input.dtype)


def npu_moe_gating_top_k(call: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    probs = call.x.float().softmax(-1)
    best = probs.sort(dim=-1, stable=True, descending=True)  # of equal ones the expert with the lower number
    weights = best.values[:, : call.k] * call.routed_scaling_factor
    unused = probs if call.out_flag else torch.full_like(probs, torch.nan)
    return weights.to(call.x.dtype).contiguous(), best.indices[:, : call.k].int().contiguous(), unused


def npu_moe_init_routing_v2(call: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    experts = call.expert_idx.flatten().long()
    need(bool((experts >= 0).all() and (experts < call.expert_num).all()), "an expert that there is not")
    order = experts.argsort(stable=True)
    rows = torch.empty_like(order)
    rows[order] = torch.arange(len(order))
    counts = experts.bincount(minlength=call.expert_num)
    copies = call.x[order // call.expert_idx.shape[1]]
    return copies, rows.int(), counts, torch.full((len(order),), torch.nan)


def npu_moe_token_unpermute(call: SimpleNamespace) -> Tensor:
    rows, probs, indices = call.permuted_tokens, call.probs, call.sorted_indices.long()
    need(torch.equal(indices.sort().values, torch.arange(len(indices))), "sorted_indices names each row once")
    picked = rows[indices.view(probs.shape)].float()
    return (picked * probs.float().unsqueeze(-1)).sum(1).to(rows.dtype)
