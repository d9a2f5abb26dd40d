"""The Ascend NPU: each operation as calls of torch_npu, in the form that serves Atlas A2 (800I A2) and A3.

Operations that are not here run their reference body, whose few torch functions torch_npu serves by itself. Attention
takes one form for prompts, chunks and single tokens alike: packed queries (TND) over the paged cache, causal by the
compressed mask. It takes head size 128; narrower heads lie padded with zeros in the cache, which leaves scores and sums
as they are and costs cache memory and traffic (128 / 80 = 1.6 times as much for XVERSE). The alternative, ATB's two
operators for other head sizes, wants lengths as host tensors and one operator for prompts and another for decoding.
Over a cache of int8 it takes other forms, see `quantized.npu_cache`.

The calls are checked against torch_npu's own schemas and the operators' documents on a pretend device (tests/npu); they
have not run on hardware.
"""

from __future__ import annotations

from functools import cache

import torch
import torch_npu
from torch import Tensor

from atb_models.errors import ConfigError
from atb_models.ops import attention, moe
from atb_models.ops.gating import Gating
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.npu_layout import HEAD_SIZE, INTEGER_SHAPES, LATENT_ATTENTION, packings
from atb_models.ops.npu_layout import plane_shape as laid_out
from atb_models.ops.plane import Plane
from atb_models.ops.quantized import npu as npu_quantized
from atb_models.ops.quantized import npu_cache
from atb_models.ops.quantized.npu_chunks import widened
from atb_models.ops.quantized.npu_packing import GROUP_STEP
from atb_models.ops.step import StepInput
from atb_models.ops.table import Backend, Body

BLOCK_SIZES = (128, 256, 384, 512)
# With sparse_mode 3 the operator takes this square whatever the lengths, and aligns it to the end of the keys.
MASK_SIZE = 2048
CAUSAL = 3
SOFTMAX = 0
COUNTS = 1  # expert_tokens_num_type: counts, not running totals


def plane_shape(block_size: int, plane: Plane) -> tuple[int, ...]:
    """Of a KV block; raises ConfigError for what the attention operator does not take."""
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise ConfigError(f"block_size {block_size}: attention on npu takes blocks of {sizes} tokens")
    if plane.heads is None or plane.width > HEAD_SIZE:
        what = f"a latent of {plane.width} values" if plane.heads is None else f"head size {plane.width}"
        raise ConfigError(f"{what}: attention on npu takes heads up to {HEAD_SIZE} wide")
    return laid_out(block_size, plane)


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    return torch_npu.npu_rms_norm(x_TH, weight_H, eps)[0]


def add_rms_norm(x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed_TH, _, sum_TH = torch_npu.npu_add_rms_norm(x_TH, residual_TH, weight_H, eps)
    return normed_TH, sum_TH


def swiglu(gate_up_TF: Tensor) -> Tensor:
    return torch_npu.npu_swiglu(gate_up_TF, -1)


def rope_tables(positions_T: Tensor, inv_freq_D: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Once a step, as the rotation of every layer takes them: both halves, [1, T, 1, D] float32."""
    cos_TD, sin_TD = attention.rope_tables.reference(positions_T, inv_freq_D, factor)
    return _both_halves(cos_TD), _both_halves(sin_TD)


def _both_halves(half_TD: Tensor) -> Tensor:
    return torch.cat((half_TD, half_TD), dim=-1)[None, :, None]


def rope(q_TND: Tensor, k_TMD: Tensor, cos_1T1D: Tensor, sin_1T1D: Tensor) -> tuple[Tensor, Tensor]:
    return _rotate(q_TND, cos_1T1D, sin_1T1D), _rotate(k_TMD, cos_1T1D, sin_1T1D)


def _rotate(x_TND: Tensor, cos_1T1D: Tensor, sin_1T1D: Tensor) -> Tensor:
    """In float32. The operator takes the tables in the dtype of its input, and with half-precision tables the logits of
    a small XVERSE-MoE deviated twice as much as those of the published code in fp16."""
    width = cos_1T1D.shape[-1]
    turned = torch_npu.npu_rotary_mul(x_TND[..., :width].float()[None], cos_1T1D, sin_1T1D)[0].to(x_TND.dtype)
    return turned if width == x_TND.shape[-1] else torch.cat((turned, x_TND[..., width:]), dim=-1)


def reshape_and_cache(k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, step: StepInput) -> None:
    width = cache.k_PSMD.shape[-1]
    k_TMD, v_TMD = widened(k_TMD, width), widened(v_TMD, width)
    if cache.k_PSMD.dtype == torch.int8:
        npu_cache.write(k_TMD, v_TMD, cache, step)
        return
    torch_npu.npu_scatter_pa_kv_cache(
        k_TMD,
        v_TMD,
        cache.k_PSMD,
        cache.v_PSMD,
        step.slots_T,
        cache_mode="Norm",  # not the default, which is another layout
    )


def paged_attention(q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    """Lengths are host lists: running totals of the queries, but each sequence's own number of keys (a paged cache)."""
    head_dim = q_TND.shape[-1]
    blocks, block_size, kv_heads, width = cache.k_PSMD.shape
    q_TND = widened(q_TND, width)
    if cache.k_PSMD.dtype == torch.int8:
        out_TND = npu_cache.attend(q_TND, cache, step, scale, _mask(q_TND.device))
        return out_TND[..., :head_dim].contiguous()
    out_TND, _ = torch_npu.npu_fused_infer_attention_score(
        q_TND,
        cache.k_PSMD.view(blocks, block_size, kv_heads * width),
        cache.v_PSMD.view(blocks, block_size, kv_heads * width),
        atten_mask=_mask(q_TND.device),
        actual_seq_lengths=step.query_ends,
        actual_seq_lengths_kv=step.kv_lens,
        block_table=step.block_table_BC,
        block_size=block_size,
        num_heads=q_TND.shape[1],
        num_key_value_heads=kv_heads,
        scale=scale,
        input_layout="TND",
        sparse_mode=CAUSAL,
    )
    return out_TND[..., :head_dim].contiguous()


@cache
def _mask(device: torch.device) -> Tensor:
    """1 where a key is hidden; the same for all layers, steps and lengths."""
    return torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.int8, device=device).triu_(1)


def moe_gating(scores_TE: Tensor, gating: Gating, bias_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The operator's own renormalisation belongs to its sigmoid form, so that of a softmax is done here."""
    if not gating.is_plain or bias_E is not None:
        raise ConfigError(f"{gating}: npu serves softmax over all experts without groups, bias and scaling")
    weights_TK, experts_TK, _ = torch_npu.npu_moe_gating_top_k(scores_TE, gating.top_k, norm_type=SOFTMAX, renorm=0)
    if gating.renormalize_eps is not None:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + gating.renormalize_eps)
    return weights_TK, experts_TK


def moe_init_routing(x_TH: Tensor, experts_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    x_RH, rows_R, counts_E, _ = torch_npu.npu_moe_init_routing_v2(
        x_TH,
        experts_TK,
        active_num=experts_TK.numel(),
        expert_num=num_experts,
        expert_tokens_num_type=COUNTS,
        expert_tokens_num_flag=True,
        active_expert_range=[0, num_experts],
        quant_mode=-1,
    )
    return x_RH, rows_R.view(experts_TK.shape), counts_E


def moe_finalize_routing(y_RH: Tensor, rows_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The operator takes the weights in the dtype of the rows; its sum is float32."""
    return torch_npu.npu_moe_token_unpermute(y_RH, rows_TK.flatten(), weights_TK.to(y_RH.dtype))


BODIES: dict[str, Body] = {
    "RmsNorm": rms_norm,
    "AddRmsNorm": add_rms_norm,
    "SwiGlu": swiglu,
    "RopeTables": rope_tables,
    "Rope": rope,
    "ReshapeAndCache": reshape_and_cache,
    "PagedAttention": paged_attention,
    "Router": moe.router.reference,
    "MoeGating": moe_gating,
    "MoeInitRouting": moe_init_routing,
    "MoeFinalizeRouting": moe_finalize_routing,
    **npu_quantized.BODIES,
}


def backend() -> Backend:
    """What this module serves."""
    return Backend(
        BODIES,
        INTEGER_SHAPES,
        packings=packings(npu_quantized.CONVERSIONS),
        plane_shape=plane_shape,
        float32=False,
        latent_attention=LATENT_ATTENTION,
        group_step=GROUP_STEP,
    )
