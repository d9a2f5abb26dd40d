"""Models, caches and steps on meta tensors: shapes without memory, for tracing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atb_models.graph.compiler import import_compiler
from atb_models.layers.build import Build, ParallelGroup
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.quantization import model_quantization
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.step import StepInput

META = torch.device("meta")


@dataclass(frozen=True)
class MetaGroup:
    """A rank's place in a group that has no other ranks: its collectives give shapes."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], x.shape[-1] * self.size)


def meta_model(
    config: ModelConfig,
    dtype: torch.dtype,
    size: int = 1,
    rank: int = 0,
    quantize: str | None = None,
    kv_dtype: torch.dtype | None = None,
) -> Decoder:
    """One rank's shard of a model without its memory. quantize: see `model_quantization`. kv_dtype: see `Build`.

    Raises ConfigError when `size` ranks cannot share it, and where the bound backend does not take these.
    """
    import_compiler()
    ranks = ParallelGroup(rank, size, MetaGroup(rank, size))
    quantization = model_quantization(config, quantize)
    return build_model(config, Build(dtype, META, tensor=ranks, quantization=quantization, kv_dtype=kv_dtype))


def meta_caches(model: Decoder, num_blocks: int, block_size: int) -> list[LayerCache]:
    """The KV cache of a rank, one entry a layer."""
    return [make_cache(layer.attn.planes, num_blocks, block_size, _empty) for layer in model.layers]


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def meta_step(
    query_lens: Sequence[int], kv_lens: Sequence[int], block_size: int, *, top_logits: int = 0
) -> StepInput:
    """A step of sequences with so many new and cached tokens (the new ones included); logits of each one's last.

    top_logits: how many of the greatest of these; 0: all.
    """
    num_blocks = [-(-length // block_size) for length in kv_lens]

    def integers(*shape: int) -> Tensor:
        return _empty(shape, torch.int32)

    tokens, batch = sum(query_lens), len(query_lens)
    return StepInput(
        token_ids_T=integers(tokens),
        positions_T=integers(tokens),
        slots_T=integers(tokens),
        query_starts_B=integers(batch + 1),
        kv_lens_B=integers(batch),
        block_table_BC=integers(batch, max(num_blocks)),
        query_lens=list(query_lens),
        kv_lens=list(kv_lens),
        logits_rows_L=integers(batch),
        top_logits=top_logits,
    )
