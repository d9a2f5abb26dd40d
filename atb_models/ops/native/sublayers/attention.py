"""The attention of a layer by the library, as one call."""

from __future__ import annotations

from ctypes import byref
from itertools import accumulate

import torch
from torch import Tensor

from atb_models.ops import sublayers
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native import linear
from atb_models.ops.native.attention import MAX_HEAD_DIM
from atb_models.ops.native.checks import dense, on_cpu
from atb_models.ops.native.library import Library
from atb_models.ops.native.packing import operand
from atb_models.ops.native.planes import MOST_BYTES, described_scales, has_planes, scale_planes
from atb_models.ops.native.structs import FORMATS, AttentionLayer, AttentionStep, Scales
from atb_models.ops.native.sublayers.call import (
    BoundSublayer,
    address,
    check_norm,
    check_vector,
    result_shapes,
    run,
    scratch_floats,
)
from atb_models.ops.step import StepInput
from atb_models.ops.sublayers import AttentionSublayer, Norm

NAME = "AttentionSublayer"


class BoundAttention(BoundSublayer):
    """A layer and its cache."""

    def __init__(self, sublayer: AttentionSublayer, cache: LayerCache) -> None:
        dtype, hidden = sublayer.norm.weight_H.dtype, sublayer.qkv.shape[1]
        _check_layer(sublayer, cache, hidden)
        self.planes, self.head_dim = dict(cache), sublayer.head_dim
        weights = (*sublayer.qkv.tensors, sublayer.qkv_bias_O, *sublayer.o.tensors, sublayer.o_bias_H)
        of_heads = (norm.weight_H for norm in _head_norms(sublayer).values() if norm is not None)
        held = (sublayer.norm.weight_H, *of_heads, *weights, *cache.values())
        described = described_scales(NAME, cache.k_PSMD, scale_planes(cache))
        super().__init__(_layer(sublayer, cache, described), held, hidden, dtype)

    def serves(self, cache: LayerCache) -> bool:
        """Whether it is still this cache that it holds, and all its tensors lie where they lay."""
        same = cache.keys() == self.planes.keys() and all(cache[name] is plane for name, plane in self.planes.items())
        return same and self.holds()


class BoundStep:
    """What all layers take of a step."""

    def __init__(self, cos_TD: Tensor, sin_TD: Tensor, step: StepInput) -> None:
        _check_step(cos_TD, sin_TD, step)
        self.cos_TD, self.sin_TD = cos_TD, sin_TD
        (self.tokens, self.half), table = cos_TD.shape, step.block_table_BC
        lists = step.slots_T, table, step.query_starts_B, step.kv_lens_B
        self.call = AttentionStep(
            *(x.data_ptr() for x in (cos_TD, sin_TD, *lists)), table.stride(0), *table.shape, self.half
        )
        self.at_call = byref(self.call)


def _has_form(sublayer: AttentionSublayer, cache: LayerCache) -> bool:
    """Whether the library has one for these weights and planes; the tensors may be on meta."""
    if sublayer.qkv.layout.is_plain or sublayer.o.layout.is_plain:
        return False
    fits = has_planes(cache, sublayer.norm.weight_H.dtype) and cache.k_PSMD.shape == cache.v_PSMD.shape
    return fits and sublayer.head_dim <= min(MAX_HEAD_DIM, MOST_BYTES)


def bound_attention(sublayer: AttentionSublayer, cache: LayerCache) -> BoundAttention | None:
    """The layer and its cache as the C side takes them, made anew where they have changed; None: it has no form.

    Raises ValueError for tensors that do not go together.
    """
    bound: BoundAttention | None = sublayer.bound
    if bound is None or not bound.serves(cache):
        if not _has_form(sublayer, cache):
            return None
        bound = sublayer.bound = BoundAttention(sublayer, cache)
    return bound


def attention_sublayer(
    library: Library,
    x_TH: Tensor | None,
    residual_TH: Tensor,
    sublayer: AttentionSublayer,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> tuple[Tensor, Tensor]:
    """What the operation of this name does; in parts for weights and planes that the library has no form for.

    The layer's weights and cache are checked when it is called first, the step by its first layer. Raises ValueError,
    before anything is written, for tensors that do not go together, lengths, blocks or slots that are not there.
    """
    bound = bound_attention(sublayer, cache)
    if bound is None:
        return sublayers.attention_sublayer.reference(x_TH, residual_TH, sublayer, cos_TD, sin_TD, cache, step)
    at = step.bound.get(NAME)
    if at is None or at.cos_TD is not cos_TD or at.sin_TD is not sin_TD:
        at = step.bound[NAME] = BoundStep(cos_TD, sin_TD, step)
    if at.tokens != residual_TH.shape[0] or 2 * at.half > bound.head_dim:
        raise ValueError(
            f"{NAME}: {len(residual_TH)} rows and heads of {bound.head_dim} beside tables {tuple(cos_TD.shape)}"
        )
    return run(NAME, library.attention_sublayer, bound, x_TH, residual_TH, at.at_call)


def attention_sublayer_shape(
    library: Library,
    x_TH: Tensor | None,
    residual_TH: Tensor,
    sublayer: AttentionSublayer,
    cos_TD: Tensor,
    sin_TD: Tensor,
    cache: LayerCache,
    step: StepInput,
) -> tuple[Tensor, Tensor]:
    """The results and the workspace on meta tensors, and which planes are written."""
    if not _has_form(sublayer, cache):
        return sublayers.attention_sublayer.reference(x_TH, residual_TH, sublayer, cos_TD, sin_TD, cache, step)
    _check_shapes(sublayer, cache)
    for plane in cache.values():
        plane.zero_()
    floats = _workspace_floats(library, sublayer, cache, step, len(residual_TH))
    _workspace = residual_TH.new_empty(floats, dtype=torch.float32)
    return result_shapes(NAME, x_TH, residual_TH, sublayer.qkv.shape[1])


def _workspace_floats(
    library: Library, sublayer: AttentionSublayer, cache: LayerCache, step: StepInput, tokens: int
) -> int:
    starts = torch.tensor([0, *accumulate(step.query_lens)], dtype=torch.int32)
    lengths = torch.tensor(step.kv_lens, dtype=torch.int32)
    at = AttentionStep(starts=starts.data_ptr(), kv_lens=lengths.data_ptr(), sequences=len(step.kv_lens))
    return scratch_floats(library.attention_sublayer, _layer(sublayer, cache, (Scales(), Scales())), tokens, byref(at))


def _layer(sublayer: AttentionSublayer, cache: LayerCache, scales: tuple[Scales, Scales]) -> AttentionLayer:
    norm, qkv, o, k_PSMD, v_PSMD = sublayer.norm, sublayer.qkv, sublayer.o, cache.k_PSMD, cache.v_PSMD
    blocks, block_size, _, _ = k_PSMD.shape
    head_norms = _head_norms(sublayer).values()
    return AttentionLayer(
        norm.weight_H.data_ptr(),
        linear.panel_weight(*operand(qkv), *qkv.shape),
        linear.panel_weight(*operand(o), *o.shape),
        *(None if norm is None else norm.weight_H.data_ptr() for norm in head_norms),
        *(address(x) for x in (sublayer.qkv_bias_O, sublayer.o_bias_H, k_PSMD, v_PSMD)),
        *k_PSMD.stride()[:3],
        *v_PSMD.stride()[:3],
        sublayer.heads,
        sublayer.kv_heads,
        sublayer.head_dim,
        block_size,
        blocks,
        FORMATS[norm.weight_H.dtype],
        FORMATS[norm.weight_H.dtype],
        *(0 if bias is None else FORMATS[bias.dtype] for bias in (sublayer.qkv_bias_O, sublayer.o_bias_H)),
        norm.eps,
        *(0.0 if norm is None else norm.eps for norm in head_norms),
        sublayer.scale,
        *scales,
    )


def _head_norms(sublayer: AttentionSublayer) -> dict[str, Norm | None]:
    return {"queries": sublayer.q_norm, "keys": sublayer.k_norm}


def _check_shapes(sublayer: AttentionSublayer, cache: LayerCache) -> None:
    """Raises ValueError for shapes that do not go together; the tensors may be on meta."""
    heads, kv_heads, head_dim = sublayer.heads, sublayer.kv_heads, sublayer.head_dim
    width, rows = heads * head_dim, (heads + 2 * kv_heads) * head_dim
    if (
        heads % kv_heads
        or sublayer.qkv.shape[0] != rows
        or sublayer.o.shape != (sublayer.qkv.shape[1], width)
        or not cache.k_PSMD.shape[2:] == cache.v_PSMD.shape[2:] == (kv_heads, head_dim)
    ):
        raise ValueError(
            f"{NAME}: {heads} heads of {head_dim}, {kv_heads} KV heads, weights {sublayer.qkv.shape} and"
            f" {sublayer.o.shape}, and a cache {tuple(cache.k_PSMD.shape)} do not go together"
        )


def _check_layer(sublayer: AttentionSublayer, cache: LayerCache, hidden: int) -> None:
    _check_shapes(sublayer, cache)
    check_norm(NAME, sublayer.norm, hidden)
    for what, norm in _head_norms(sublayer).items():
        if norm is not None:
            check_vector(NAME, f"norm of {what}", norm.weight_H, (sublayer.head_dim,), (sublayer.norm.weight_H.dtype,))
    on_cpu(NAME, cache.k_PSMD, cache.v_PSMD)
    for plane in (cache.k_PSMD, cache.v_PSMD):
        dense(NAME, plane)
    dtype = sublayer.norm.weight_H.dtype
    for weight, bias in ((sublayer.qkv, sublayer.qkv_bias_O), (sublayer.o, sublayer.o_bias_H)):
        outputs, inputs = weight.shape
        packed, scale_O = operand(weight)
        linear.check(torch.empty(0, inputs, dtype=dtype), packed, outputs, bias, scale_O, dtype)


def _check_step(cos_TD: Tensor, sin_TD: Tensor, step: StepInput) -> None:
    lists = step.slots_T, step.block_table_BC, step.query_starts_B, step.kv_lens_B
    on_cpu(NAME, cos_TD, sin_TD, *lists)
    for table in (cos_TD, sin_TD):
        dense(NAME, table, 2)
    for ints in lists:
        dense(NAME, ints)
    sequences = len(step.kv_lens_B)
    if not cos_TD.dtype == sin_TD.dtype == torch.float32 or any(ints.dtype != torch.int32 for ints in lists):
        raise ValueError(f"{NAME}: tables of {cos_TD.dtype} and {sin_TD.dtype}, lists of {[x.dtype for x in lists]}")
    if not (
        cos_TD.shape == sin_TD.shape
        and step.slots_T.shape == cos_TD.shape[:1]
        and step.block_table_BC.shape[0] == sequences > 0
        and step.query_starts_B.shape == (sequences + 1,)
    ):
        raise ValueError(
            f"{NAME}: {[tuple(x.shape) for x in (cos_TD, sin_TD, *lists)]} do not go together: cos, sin, slots, block"
            " table, query starts and KV lengths"
        )
