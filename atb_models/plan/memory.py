"""The memory of a rank, known before a weight is read: weights, activations at their peak, KV cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from atb_models.graph import meta_caches, meta_model, meta_step, trace
from atb_models.graph.meta import META
from atb_models.layers.parameter import fillings
from atb_models.limits import BLOCK_SIZE, Limits, graph_sizes
from atb_models.models.config import ModelConfig
from atb_models.models.decoder import Decoder, DecoderLayer
from atb_models.models.quantization import layer_kinds, with_layers
from atb_models.models.weights.packer import packing_bytes
from atb_models.ops.kv_cache import block_bytes

# Bytes for each logit while tokens are sampled with every option: the logits, their copies and sorting keys. 68 were
# measured as growth of the resident memory.
SAMPLING_BYTES = 72
# Bytes for each logit, and of its log-probability; the CPU's topk takes no copy of its row.
LOGIT_BYTES, SCORING_BYTES = 4, 4
# What the allocator keeps after steps of different sizes, beyond the peak of the largest: at most that peak once more,
# and at most this; 61 MiB were measured.
MOST_SLACK = 128 << 20


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, of the largest shard; ranks differ only by padding."""

    weights: int  # as the bound backend stores them
    activations: int  # peak of the largest step, with workspaces, the allocator's slack and the memory of graphs
    kv_per_token: int
    block_size: int
    packing: int = 0  # beside the weights while they are loaded: the matrix that is being packed

    @property
    def kv_block(self) -> int:
        return self.kv_per_token * self.block_size

    def kv_blocks(self, usable: int) -> int:
        """Whole KV blocks that fit into `usable` bytes beside the weights and activations; 0 if none does."""
        if usable < self.weights + self.packing:
            return 0
        return max(0, usable - self.weights - self.activations) // self.kv_block

    def needed(self, blocks: int) -> int:
        """Bytes with so many KV blocks: while it is loaded, or in its largest step."""
        return self.weights + max(self.packing, self.activations + blocks * self.kv_block)


def rank_memory(
    config: ModelConfig,
    dtype: torch.dtype,
    size: int,
    limits: Limits,
    quantize: str | None = None,
    kv_dtype: torch.dtype | None = None,
) -> RankMemory:
    """What one of `size` ranks needs; the rest is as `meta_model` takes it.

    Raises ConfigError if they cannot share the model.

    The operations' workspaces are those of the backend that is bound.
    """
    kinds = one_of_each_layer(config)
    model = meta_model(kinds, dtype, size, quantize=quantize, kv_dtype=kv_dtype)
    equal = [(len(alike) - 1, layer) for alike, layer in zip(layer_kinds(config), model.layers, strict=True)]
    kv_per_token = kv_bytes_per_token(model.layers) + sum(more * kv_bytes_per_token([layer]) for more, layer in equal)
    graphs = graph_bytes(model, limits) + limits.block_size * kv_per_token if limits.graph_capture else 0
    return RankMemory(
        weights=weight_bytes(model) + sum(more * weight_bytes(layer) for more, layer in equal),
        activations=peak_activations(model, limits) + graphs,
        kv_per_token=kv_per_token,
        block_size=limits.block_size,
        packing=max(map(packing_bytes, fillings(model).values())),
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a shard's weights, or of a layer's, as the bound backend stores them."""
    return sum(filling.weight.nbytes for filling in fillings(model).values())


def kv_bytes_per_token(layers: Iterable[DecoderLayer]) -> int:
    """Bytes that a token leaves in the cache in these layers of a shard, as the bound backend lays it out."""
    return sum(block_bytes(layer.attn.planes, BLOCK_SIZE) for layer in layers) // BLOCK_SIZE


def peak_activations(model: Decoder, limits: Limits) -> int:
    """The peak of the largest step that the limits allow, from the recorded graph of a shard on meta tensors.

    Layers follow one another and free what they used, so one layer of each kind has the peak of all.
    """
    scored = min(limits.max_prompt_logits, limits.max_prefill_tokens)
    sampled = limits.max_batch_size
    after = after_the_model(sampled, scored, model.config.vocab_size)
    peak = max(_peak_of_step(model, limits, *largest_step(limits), sampled + scored), after)
    return peak + min(peak, MOST_SLACK)


def after_the_model(sampled: int, scored: int, vocab_size: int) -> int:
    """Peak bytes while a step's logits are used: `sampled` rows of sequences, `scored` rows of prompt tokens.

    The rows of prompt tokens come first; they are still there while the other rows are sampled.
    """
    scoring = (sampled + scored) * LOGIT_BYTES + scored * SCORING_BYTES
    return vocab_size * max(scoring, scored * LOGIT_BYTES + sampled * SAMPLING_BYTES)


def graph_bytes(model: Decoder, limits: Limits) -> int:
    """Bytes of captured decode steps, without their spare KV block.

    All share the memory that the largest needs; each has its own logits.
    """
    batch = limits.max_batch_size
    logits = sum(graph_sizes(batch, limits.block_size)) * model.config.vocab_size * LOGIT_BYTES
    return _peak_of_step(model, limits, [1] * batch, [limits.max_seq_len] * batch, batch) + logits


def _peak_of_step(model: Decoder, limits: Limits, query_lens: list[int], kv_lens: list[int], num_logits: int) -> int:
    blocks = sum(-(-length // limits.block_size) for length in kv_lens)
    rows = torch.empty(num_logits, dtype=torch.int32, device=META)
    step = replace(meta_step(query_lens, kv_lens, limits.block_size), logits_rows_L=rows)
    return trace(model, step, meta_caches(model, blocks, limits.block_size)).peak_activation_bytes


def one_of_each_layer(config: ModelConfig) -> ModelConfig:
    """The same model with one layer of each kind, in the order of `layer_kinds`: dense and mixture of experts, if it
    has both, those that a checkpoint stores in other ways, and the last one."""
    return with_layers(config, (alike[0] for alike in layer_kinds(config)))


def largest_step(limits: Limits) -> tuple[list[int], list[int]]:
    """Query and KV lengths of a step with all prompt tokens allowed; the rest of its batch generates."""
    longest, budget = limits.max_seq_len, limits.max_prefill_tokens
    chunks: list[int] = []
    while budget and len(chunks) < limits.max_batch_size:
        chunks.append(min(budget, longest))
        budget -= chunks[-1]
    batch = limits.max_batch_size
    return chunks + [1] * (batch - len(chunks)), [longest] * batch
