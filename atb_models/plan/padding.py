"""What zeros cost: ranks have equal shapes, which zeros fill up where heads, widths or the vocabulary do not divide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from atb_models.graph import meta_model
from atb_models.layers.heads import HeadShares
from atb_models.layers.parameter import Filling, fillings
from atb_models.limits import BLOCK_SIZE
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder
from atb_models.models.quantization import layer_kinds
from atb_models.ops.kv_cache import block_bytes
from atb_models.plan.memory import one_of_each_layer


@dataclass(frozen=True)
class Padding:
    """Of all ranks together. weights, kv_per_token: the share of their bytes that is zeros, 0 to 1.

    shares: of the heads, in the layers where most of them are zero heads.
    """

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
    kinds, layers = one_of_each_layer(config), [len(alike) for alike in layer_kinds(config)]
    models = [meta_model(kinds, dtype, size, rank, quantize, kv_dtype) for rank in range(size)]
    stored = zeros = 0.0
    for model in models:
        for name, filling in fillings(model).items():
            nbytes = filling.weight.nbytes * _times(name, layers)
            stored += nbytes
            zeros += nbytes * _zeros(filling)
    shares = max((layer.attn.shares for layer in models[0].layers), key=lambda shares: shares.zero_heads)
    return Padding(shares, zeros / stored, _zeros_of_the_cache(models[0], layers))


def _times(parameter: str, layers: list[int]) -> int:
    """How many the whole model has of a parameter, whose name says of which kind of layer it is."""
    top, _, rest = parameter.partition(".")
    return layers[int(rest.partition(".")[0])] if top == "layers" else 1


def _zeros(filling: Filling) -> float:
    """The share of the elements that no part of the checkpoint fills."""
    filled = sum(part.numel for part in filling.parts.values())
    return 1 - filled / math.prod(filling.weight.shape)


def _zeros_of_the_cache(model: Decoder, layers: list[int]) -> float:
    """The share of the bytes of a token's keys and values that belongs to zero heads."""
    zeros = every = 0.0
    for layer, times in zip(model.layers, layers, strict=True):
        planes, shares = layer.attn.planes, layer.attn.shares
        every += times * block_bytes(planes, BLOCK_SIZE)
        by_heads = times * block_bytes([plane for plane in planes if plane.heads is not None], BLOCK_SIZE)
        zeros += by_heads * shares.zero_kv_heads / (shares.size * shares.kv_heads)
    return zeros / every
