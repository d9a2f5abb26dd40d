"""What zeros cost: ranks have equal shapes, which zeros fill up where heads, widths or the vocabulary do not divide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from atb_models.graph import meta_model
from atb_models.layers.heads import HeadShares, share_heads
from atb_models.layers.parameter import Filling, fillings
from atb_models.limits import BLOCK_SIZE
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder
from atb_models.models.quantization import layer_kinds
from atb_models.ops.kv_cache import block_bytes
from atb_models.plan.memory import one_of_each_layer


@dataclass(frozen=True)
class Padding:
    """Of all ranks together. weights, kv_per_token: the share of their bytes that is zeros, 0 to 1."""

    shares: HeadShares
    weights: float
    kv_per_token: float

    @property
    def without_heads(self) -> int:
        """Ranks that hold no head of the model."""
        ranks = map(self.shares.queries, range(self.shares.size))
        return sum(queries.start == queries.stop for queries in ranks)


def count_padding(
    config: ModelConfig,
    dtype: torch.dtype,
    size: int,
    quantize: str | None = None,
    kv_dtype: torch.dtype | None = None,
) -> Padding:
    """The padding of `size` ranks, as the bound backend stores weights and cache; the rest is as `meta_model` takes it.

    Raises ConfigError if they cannot share the model. What a backend fills up for itself is not counted.
    """
    shares = share_heads(config.num_attention_heads, config.num_key_value_heads, size)
    kinds, layers = one_of_each_layer(config), [len(alike) for alike in layer_kinds(config)]
    stored = zeros = 0.0
    for rank in range(size):
        model = meta_model(kinds, dtype, size, rank, quantize, kv_dtype)
        for name, filling in fillings(model).items():
            nbytes = filling.weight.nbytes * _times(name, layers)
            stored += nbytes
            zeros += nbytes * _zeros(filling)
    zero_kv = shares.zero_kv_heads / (size * shares.kv_heads)
    return Padding(shares, zeros / stored, zero_kv * _with_heads(model, layers))


def _times(parameter: str, layers: list[int]) -> int:
    """How many the whole model has of a parameter, whose name says of which kind of layer it is."""
    top, _, rest = parameter.partition(".")
    return layers[int(rest.partition(".")[0])] if top == "layers" else 1


def _zeros(filling: Filling) -> float:
    """The share of the elements that no part of the checkpoint fills."""
    filled = sum(part.numel for part in filling.parts.values())
    return 1 - filled / math.prod(filling.weight.shape)


def _with_heads(model: Decoder, layers: list[int]) -> float:
    """The share of the KV cache's bytes that lie in planes with heads."""
    by_heads = every = 0
    for layer, times in zip(model.layers, layers, strict=True):
        planes = layer.attn.planes
        every += times * block_bytes(planes, BLOCK_SIZE)
        by_heads += times * block_bytes([plane for plane in planes if plane.heads is not None], BLOCK_SIZE)
    return by_heads / every
