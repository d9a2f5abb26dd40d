"""A KV cache of int8 on the NPU: the integers lie as floats would, the scales of a block's vectors head after head.

Single queries read both as they are, by the form of the attention operator that takes a float32 scale for each token
and head in the blocks of the cache; see `npu_chunks` for what longer chunks read.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch_npu
from torch import Tensor

from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import scale_of
from atb_models.ops.quantized.npu_chunks import RowSpan, chunk_operand, forget_floats, keep_floats, row_spans
from atb_models.ops.step import StepInput

OF_BLOCKS = 5  # antiquant_mode: a scale for each token and head, [P, M, S]
CAUSAL = 3  # sparse_mode


def write(k_TMD: Tensor, v_TMD: Tensor, cache: LayerCache, step: StepInput) -> None:
    """The heads are as wide as the cache's. The integers of zeros are not defined, and their scale is 0."""
    k8_TMD, k_scale_TM = torch_npu.npu_dynamic_quant(k_TMD)
    v8_TMD, v_scale_TM = torch_npu.npu_dynamic_quant(v_TMD)
    torch_npu.npu_scatter_pa_kv_cache(
        k8_TMD,
        v8_TMD,
        cache.k_PSMD,
        cache.v_PSMD,
        step.slots_T,
        cache_mode="Norm",
    )
    for name, scale_TM in (("k", k_scale_TM), ("v", v_scale_TM)):
        scale_PMS = cache[scale_of(name)]
        torch_npu.npu_scatter_nd_update_(scale_PMS.view(-1), _places(scale_PMS, step), scale_TM.flatten())
    keep_floats(k_TMD, v_TMD, step)


def _places(scale_PMS: Tensor, step: StepInput) -> Tensor:
    """Of the scale of each token and head in a plane seen as one row, [T * M, 1]; the same for all layers."""
    _, heads, size = scale_PMS.shape
    name = f"npu_cache.places of {heads} heads"
    if name not in step.bound:
        slots_T = step.slots_T
        first_T = slots_T + slots_T // size * ((heads - 1) * size)  # of the first head
        of_heads = torch.arange(0, heads * size, size, dtype=slots_T.dtype, device=slots_T.device)
        step.bound[name] = (first_T.unsqueeze(1) + of_heads).view(-1, 1)
    places: Tensor = step.bound[name]
    return places


def attend(q_TND: Tensor, cache: LayerCache, step: StepInput, scale: float, mask: Tensor) -> Tensor:
    """-> [T, N, D]. The heads are as wide as the cache's; mask: the operator's for causal attention."""
    parts = [
        _single_queries(q_TND, span, cache, step, scale)
        if span.single
        else _chunks(q_TND, span, cache, step, scale, mask)
        for span in row_spans(step)
    ]
    forget_floats(step)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _single_queries(q_TND: Tensor, span: RowSpan, cache: LayerCache, step: StepInput, scale: float) -> Tensor:
    blocks, block_size, kv_heads, width = cache.k_PSMD.shape
    out_BN1D, _ = torch_npu.npu_fused_infer_attention_score(
        q_TND[span.tokens].unsqueeze(2),
        cache.k_PSMD.view(blocks, block_size, kv_heads * width),
        cache.v_PSMD.view(blocks, block_size, kv_heads * width),
        key_antiquant_scale=cache[scale_of("k")],
        value_antiquant_scale=cache[scale_of("v")],
        key_antiquant_mode=OF_BLOCKS,
        value_antiquant_mode=OF_BLOCKS,
        actual_seq_lengths_kv=step.kv_lens[span.rows],
        block_table=step.block_table_BC[span.rows],
        block_size=block_size,
        num_heads=q_TND.shape[1],
        num_key_value_heads=kv_heads,
        scale=scale,
        input_layout="BNSD",
    )
    return out_BN1D.squeeze(2)


def _chunks(q_TND: Tensor, span: RowSpan, cache: LayerCache, step: StepInput, scale: float, mask: Tensor) -> Tensor:
    """Without blocks: lengths are running totals of the queries, and of the keys too."""
    out_TND, _ = torch_npu.npu_fused_infer_attention_score(
        q_TND[span.tokens],
        chunk_operand("k", span, cache, step),
        chunk_operand("v", span, cache, step),
        atten_mask=mask,
        actual_seq_lengths=list(accumulate(step.query_lens[span.rows])),
        actual_seq_lengths_kv=list(accumulate(step.kv_lens[span.rows])),
        num_heads=q_TND.shape[1],
        num_key_value_heads=cache.k_PSMD.shape[2],
        scale=scale,
        input_layout="TND",
        sparse_mode=CAUSAL,
    )
    return out_TND
