"""A decoder's step on a rank that has nothing to exchange with others, as a composite operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from atb_models.ops.attention import rope_tables
from atb_models.ops.basic import embedding, linear, select_rows, to_float
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.step import StepInput
from atb_models.ops.sublayers import (
    AttentionSublayer,
    FeedForwardSublayer,
    Norm,
    attention_sublayer,
    feed_forward_sublayer,
)
from atb_models.ops.table import op
from atb_models.ops.top_logits import top_logits
from atb_models.ops.weight import Weight

# Of the longest step that runs as one operation. What is between the calls of a longer one takes no part of its time
# that counts, and an interrupt need not wait for the end of it.
MOST_TOKENS = 64


@dataclass(eq=False)
class DecoderWeights:
    """What a decoder multiplies with: `embedding` [V, H], `inv_freq_D` [D / 2] and the factor of the rotary tables, the
    two sublayers of each layer, the norm behind the last one, `head` [V, H].

    bound: what the backend keeps of it from step to step.
    """

    embedding_VH: Tensor
    inv_freq_D: Tensor
    rope_factor: float
    layers: Sequence[tuple[AttentionSublayer, FeedForwardSublayer]]
    norm: Norm
    head: Weight
    bound: Any = field(default=None, init=False)


@op("Decoder", cost=None, in_parts=True)
def decoder(
    weights: DecoderWeights, counters: Sequence[Tensor | None], caches: Sequence[LayerCache], step: StepInput
) -> Tensor:
    """Logits [L, V] float32 of the wanted tokens, or, where the step has `top_logits`, their keys (see `top_logits`).

    Keys and values are written to `caches`. counters: of each layer, its experts' tokens are added to it. After the
    last layer's attention nothing is read of the tokens whose logits are not wanted: they go no further.
    """
    tables = rope_tables(step.positions_T, weights.inv_freq_D, weights.rope_factor)
    x_TH: Tensor | None = None
    residual_TH = embedding(step.token_ids_T, weights.embedding_VH)
    for (attention, feed_forward), counter_E, cache in zip(weights.layers, counters, caches, strict=True):
        x_TH, residual_TH = attention_sublayer(x_TH, residual_TH, attention, *tables, cache, step)
        if cache is caches[-1] and not step.wants_all_logits:
            x_TH, residual_TH = (select_rows(rows_TH, step.logits_rows_L) for rows_TH in (x_TH, residual_TH))
        if len(residual_TH):
            x_TH, residual_TH = feed_forward_sublayer(x_TH, residual_TH, feed_forward, counter_E)
    if len(residual_TH):
        x_TH, _ = weights.norm(x_TH, residual_TH)
    assert x_TH is not None
    return logits_of(x_TH, weights.head, step.top_logits)


def logits_of(x_LH: Tensor, head: Weight, count: int) -> Tensor:
    """Logits [L, V] float32 of normed rows, or the keys of the `count` greatest of each."""
    logits_LV = linear(x_LH, head)
    return top_logits(logits_LV, count, 0) if count else to_float(logits_LV)
