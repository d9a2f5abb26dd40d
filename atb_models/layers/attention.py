"""Attention with rotary positions over the paged KV cache, cut across ranks by heads."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build
from atb_models.layers.heads import share_heads
from atb_models.layers.latent_attention import LatentAttention
from atb_models.layers.linear import column_linear, row_linear
from atb_models.layers.norm import RmsNorm
from atb_models.layers.qk_norm import HeadNorms, WideNorms
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.plane import Plane, key_and_value
from atb_models.ops.step import StepInput
from atb_models.ops.sublayers import AttentionSublayer


class Attention(nn.Module):
    """Grouped-query attention; the caller sums the ranks' results.

    heads, kv_heads: of a rank, zero heads included. These have zero weights, so their sums are zeros as well.
    qk_norm: of queries and keys before they are turned, with `eps`: of each head, or over all heads. clip: the bound of
    queries, keys and values, after that norm.
    """

    def __init__(
        self,
        build: Build,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        o_bias: bool,
        qk_norm: Literal["head", "wide"] | None = None,
        eps: float = 1e-6,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.clip = head_dim, clip
        ranks = build.tensor
        self.shares = shares = share_heads(heads, kv_heads, ranks.size, build.head_step(head_dim, "o.weight"))
        self.heads, self.kv_heads = shares.heads, shares.kv_heads
        queries, keys = shares.queries(ranks.rank).times(head_dim), shares.keys(ranks.rank).times(head_dim)
        self.planes: tuple[Plane, ...] = key_and_value(self.kv_heads, head_dim, build.kv_dtype or build.dtype)
        self.qkv = column_linear(build.within("qkv"), hidden, {"q": queries, "k": keys, "v": keys}, bias=qkv_bias)
        self.o = row_linear(build.within("o"), queries, hidden, bias=o_bias)
        self.qk_norm: HeadNorms | WideNorms | None = None
        if qk_norm == "head":
            self.qk_norm = HeadNorms(build.within("qk_norm"), head_dim, eps)
        elif qk_norm == "wide":
            counts = shares.counts_keys(ranks.rank)
            self.qk_norm = WideNorms(build.within("qk_norm"), queries, keys, eps, counts_keys=counts)

    def forward(self, x_TH: Tensor, step: StepInput, rope: tuple[Tensor, Tensor], cache: LayerCache) -> Tensor:
        qkv = self.qkv(x_TH).view(x_TH.shape[0], -1, self.head_dim)
        q_TND, k_TMD, v_TMD = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if self.qk_norm is not None:
            q_TND, k_TMD = self.qk_norm(q_TND, k_TMD)
        if self.clip is not None:
            q_TND, k_TMD, v_TMD = (ops.clip(x, self.clip) for x in (q_TND, k_TMD, v_TMD))
        q_TND = ops.rope_and_cache(q_TND, k_TMD, v_TMD, *rope, cache, step)
        out_TND = ops.paged_attention(q_TND, cache, step, self.head_dim**-0.5)
        return self.o(out_TND.flatten(1))


def attention_sublayer(norm: RmsNorm, attention: Attention | LatentAttention) -> AttentionSublayer | None:
    """Attention behind `norm` as one operation takes it; None for what always runs in parts: a family's own attention,
    a norm with a bias or over all heads, bounds."""
    described = norm.described()
    if type(attention) is not Attention or described is None or attention.clip is not None:
        return None
    q_norm = k_norm = None
    if isinstance(attention.qk_norm, HeadNorms):
        q_norm, k_norm = attention.qk_norm.q.described(), attention.qk_norm.k.described()
    if attention.qk_norm is not None and (q_norm is None or k_norm is None):
        return None
    qkv, o = attention.qkv, attention.o
    heads = attention.heads, attention.kv_heads, attention.head_dim
    return AttentionSublayer(described, qkv.stored, qkv.added_bias, o.stored, o.added_bias, *heads, q_norm, k_norm)
