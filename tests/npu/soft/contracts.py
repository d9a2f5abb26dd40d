"""What the operators demand of a call, as far as shapes, dtypes and host lists say it.

torch_npu's Meta kernels check little of this. The sources are op-plugin's documents of each operator and, where those
are silent, the calls of vllm-ascend on Atlas A2. The checks read no values, so they hold for fake tensors too. A
function here has the name of its operator.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tests.npu.soft import attention_contracts, integer_contracts
from tests.npu.soft.demands import FLOATS, ContractError, contiguous, need, plain

OVERLOADS = {"npu_fused_infer_attention_score": ("out",)}


def bound(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleNamespace:
    """All arguments of a call by the names of the operator's schema, defaults included."""
    values = {}
    for place, argument in enumerate(op._schema.arguments):
        values[argument.name] = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
    return SimpleNamespace(**values)


def check(op: Any, call: SimpleNamespace) -> None:
    """Raise ContractError for a call that breaks the operator's contract, or whose operator has none."""
    namespace, name = op.namespace, op._schema.name.partition("::")[2]
    contracts = globals() | vars(attention_contracts) | vars(integer_contracts)
    contract = contracts.get(name) if namespace == "npu" and name.lstrip("_").startswith("npu_") else None
    if contract is None or op._schema.overload_name not in ("", *OVERLOADS.get(name, ())):
        raise ContractError(f"{op}: the soft NPU does not know this operator")
    try:
        contract(call)
    except ContractError as error:
        raise ContractError(f"{name}: {error}") from None


def npu_rms_norm(call: SimpleNamespace) -> None:
    x, gamma = call.input, call.gamma
    need(x.dtype in FLOATS and gamma.dtype in (x.dtype, torch.float32), f"dtypes {x.dtype} and {gamma.dtype}")
    need(gamma.dim() >= 1 and x.shape[-gamma.dim() :] == gamma.shape, f"gamma {gamma.shape} for input {x.shape}")


def npu_add_rms_norm(call: SimpleNamespace) -> None:
    x1, x2 = call.x1, call.x2
    need(x1.shape == x2.shape and x1.dtype == x2.dtype, f"x1 {x1.shape} {x1.dtype} and x2 {x2.shape} {x2.dtype}")
    npu_rms_norm(SimpleNamespace(input=x1, gamma=call.gamma))


def npu_swiglu(call: SimpleNamespace) -> None:
    need(call.input.dtype in FLOATS, f"dtype {call.input.dtype}")
    need(call.input.shape[call.dim] % 2 == 0, f"dimension {call.dim} of {call.input.shape} must be even")


def npu_rotary_mul(call: SimpleNamespace) -> None:
    x, r1, r2 = call.input, call.r1, call.r2
    plain(call, "rotate")
    need(call.rotary_mode == "half", f"rotary_mode {call.rotary_mode}")
    need(x.dim() == r1.dim() == r2.dim() == 4 and r1.shape == r2.shape, "input, r1 and r2 have four dimensions")
    need(x.dtype in FLOATS and x.dtype == r1.dtype == r2.dtype, f"dtypes {x.dtype}, {r1.dtype}, {r2.dtype}")
    batch, tokens, heads, dim = x.shape
    need(batch < 1000 and heads < 1000 and dim < 896 and dim % 2 == 0, f"input {x.shape}")
    shapes = ((1, tokens, 1, dim), (batch, tokens, 1, dim), (batch, tokens, heads, dim))
    need(tuple(r1.shape) in shapes, f"r1 {r1.shape} for input {x.shape} [B, S, N, D]")


def npu_moe_gating_top_k(call: SimpleNamespace) -> None:
    x = call.x
    plain(call, "bias", "input_ids", "tid2eid")
    need(x.dim() == 2 and x.dtype in FLOATS and x.shape[1] <= 2048, f"x {x.shape} {x.dtype}")
    need(call.group_count == call.k_group == 1, "groups are not modelled here")
    need(1 <= call.k <= x.shape[1] and x.shape[1] > 2, f"k {call.k} of {x.shape[1]} experts")
    need(call.renorm == 0 and call.norm_type == 0, f"renorm {call.renorm}, norm_type {call.norm_type}: softmax is 0, 0")


def npu_moe_init_routing_v2(call: SimpleNamespace) -> None:
    x, experts = call.x, call.expert_idx
    plain(call, "scale", "offset", "x_dtype")
    need(x.dim() == experts.dim() == 2 and x.shape[0] == experts.shape[0], f"x {x.shape}, expert_idx {experts.shape}")
    need(x.dtype in (*FLOATS, torch.int8), f"x {x.dtype}")
    need(experts.dtype == torch.int32, f"expert_idx {experts.dtype}")
    need(call.active_num == experts.numel(), f"active_num {call.active_num} must be rows * K, {experts.numel()}")
    need(call.expert_tokens_num_type == 1 and call.expert_tokens_num_flag, "counts (type 1, flag True) are wanted")
    need(call.quant_mode == -1 and call.drop_pad_mode == 0 and call.row_idx_type == 0, "plain, dropless, gather index")
    need(list(call.active_expert_range) == [0, call.expert_num], f"experts {call.active_expert_range}")
    contiguous(x=x, expert_idx=experts)


def npu_moe_token_unpermute(call: SimpleNamespace) -> None:
    rows, indices, probs = call.permuted_tokens, call.sorted_indices, call.probs
    need(not call.padded_mode and call.restore_shape is None and probs is not None, "the weighted, unpadded form")
    need(rows.dim() == 2 and probs.dim() == 2 and probs.shape[1] <= 512, f"rows {rows.shape}, probs {probs.shape}")
    need(rows.dtype in FLOATS and probs.dtype == rows.dtype, f"rows {rows.dtype}, probs {probs.dtype}")
    need(indices.dim() == 1 and indices.dtype == torch.int32, f"sorted_indices {indices.shape} {indices.dtype}")
    need(
        indices.numel() == probs.numel() == rows.shape[0], f"{indices.numel()} indices for {probs.shape}, {rows.shape}"
    )
    contiguous(permuted_tokens=rows, sorted_indices=indices, probs=probs)
