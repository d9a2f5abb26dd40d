"""A step of a decoder by the library, as one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import addressof, byref
from operator import is_

import torch
from torch import Tensor

from atb_models.ops.composite import decoder as composite
from atb_models.ops.composite.decoder import DecoderWeights, logits_of
from atb_models.ops.kv_cache import LayerCache
from atb_models.ops.native import linear, structs
from atb_models.ops.native.checks import dense, on_cpu, refuse
from atb_models.ops.native.library import Library, grown_scratch, held_scratch, threads
from atb_models.ops.native.packing import operand
from atb_models.ops.native.rope import check_frequencies
from atb_models.ops.native.sublayers.attention import BoundAttention, bound_attention
from atb_models.ops.native.sublayers.call import check_norm, check_vector
from atb_models.ops.native.sublayers.feed_forward import BoundFeedForward, bound_feed_forward
from atb_models.ops.step import StepInput

NAME = "Decoder"
BoundLayers = list[tuple[BoundAttention, BoundFeedForward]]


class BoundDecoder:
    """A decoder, the counters of its experts and its caches as the C side takes them.

    Checked once, and again where a counter or a plane is another one, or a tensor lies elsewhere.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        layers: BoundLayers,
        counters: Sequence[Tensor | None],
        caches: Sequence[LayerCache],
    ) -> None:
        _check(weights, layers)
        self.dtype, self.head = weights.embedding_VH.dtype, weights.head
        self.has_head = not weights.head.layout.is_plain
        self.width = weights.head.shape[0] if self.has_head else weights.embedding_VH.shape[1]
        self._layers, self._held = layers, [*counters, *_planes(caches)]
        self._array = (structs.SublayerPair * len(layers))(
            *(structs.SublayerPair(*(addressof(bound.layer) for bound in pair)) for pair in layers)
        )
        self._decoder = self._described(weights)
        self.at_decoder = byref(self._decoder)
        own = weights.embedding_VH, weights.inv_freq_D, weights.norm.weight_H, *weights.head.tensors
        self._tensors = [*own, *(tensor for pair in layers for bound in pair for tensor in bound.tensors)]
        self._addresses = self._lie()

    def serves(self, counters: Sequence[Tensor | None], caches: Sequence[LayerCache]) -> bool:
        """Whether it is still these that it holds, and all tensors lie where they lay."""
        given = [*counters, *_planes(caches)]
        same = len(given) == len(self._held) and all(map(is_, given, self._held))
        return same and self._lie() == self._addresses

    def _lie(self) -> list[int]:
        return list(map(Tensor.data_ptr, self._tensors))

    def _described(self, weights: DecoderWeights) -> structs.DecoderModel:
        (vocabulary, hidden), norm = weights.embedding_VH.shape, weights.norm
        decoder = structs.DecoderModel(
            weights.embedding_VH.data_ptr(),
            norm.weight_H.data_ptr(),
            weights.inv_freq_D.data_ptr(),
            addressof(self._array),
            structs.PanelWeight(),
            *(vocabulary, hidden, len(weights.inv_freq_D), len(self._array)),
            *(structs.FORMATS[self.dtype], structs.FORMATS[norm.weight_H.dtype]),
            *(norm.eps, weights.rope_factor),
        )
        if self.has_head:
            decoder.head = linear.panel_weight(*operand(weights.head), *weights.head.shape)
        return decoder


def decoder(
    library: Library,
    weights: DecoderWeights,
    counters: Sequence[Tensor | None],
    caches: Sequence[LayerCache],
    step: StepInput,
) -> Tensor:
    """What the operation of this name does; in parts where the library has no form for a layer.

    A head that is not packed, such as a tied one, multiplies the rows that the call gives. Weights and caches are
    checked when it is called first. Raises ValueError, before anything is written, for tensors that do not go together,
    token ids, rows, lengths, blocks or slots that are not there.
    """
    bound = weights.bound
    if bound is None or not bound.serves(counters, caches):
        layers = _bound_layers(weights, counters, caches)
        if layers is None:
            return composite.decoder.reference(weights, counters, caches, step)
        bound = weights.bound = BoundDecoder(weights, layers, counters, caches)
    _check_step(step)
    (rows,) = step.logits_rows_L.shape
    out = torch.empty(rows, bound.width, dtype=bound.dtype)
    keys = torch.empty(rows, step.top_logits + 1, dtype=torch.int64) if bound.has_head and step.top_logits else None
    _run(library, bound, step, out, keys)
    if keys is not None:
        return keys
    return out.float() if bound.has_head else logits_of(out, weights.head, step.top_logits)


def _run(library: Library, bound: BoundDecoder, step: StepInput, out: Tensor, keys: Tensor | None) -> None:
    lists = step.slots_T, step.block_table_BC, step.query_starts_B, step.kv_lens_B
    table = step.block_table_BC
    call = structs.DecoderCall(
        *(x.data_ptr() for x in (step.token_ids_T, step.positions_T, step.logits_rows_L)),
        structs.AttentionStep(None, None, *(x.data_ptr() for x in lists), table.stride(0), *table.shape),
        out.data_ptr(),
        None if keys is None else keys.data_ptr(),
        *held_scratch(),
        *(step.token_ids_T.shape[0], out.shape[0], step.top_logits, threads()),
    )
    status = library.decoder(bound.at_decoder, byref(call))
    if status == structs.MORE_SCRATCH:
        call.scratch, call.scratch_floats = grown_scratch(call.scratch_floats)
        status = library.decoder(bound.at_decoder, byref(call))
    if status:
        refuse(status, NAME)


def _bound_layers(
    weights: DecoderWeights, counters: Sequence[Tensor | None], caches: Sequence[LayerCache]
) -> BoundLayers | None:
    """None where the library has no form for one, or their caches are not alike."""
    layers: BoundLayers = []
    for (attention, feed_forward), counter_E, cache in zip(weights.layers, counters, caches, strict=True):
        bound = bound_attention(attention, cache), bound_feed_forward(feed_forward, counter_E)
        if bound[0] is None or bound[1] is None or cache.k_PSMD.shape[:2] != caches[0].k_PSMD.shape[:2]:
            return None
        layers.append((bound[0], bound[1]))
    return layers


def _planes(caches: Sequence[LayerCache]) -> Iterator[Tensor]:
    return (plane for cache in caches for plane in cache.values())


def _check(weights: DecoderWeights, layers: BoundLayers) -> None:
    """Raises ValueError for tensors that do not go together."""
    table_VH, head, half = weights.embedding_VH, weights.head, len(weights.inv_freq_D)
    vocabulary, hidden = table_VH.shape
    check_vector(NAME, "embedding", table_VH, (vocabulary, hidden))
    check_norm(NAME, weights.norm, hidden)
    check_frequencies(NAME, weights.inv_freq_D)
    dtype = table_VH.dtype
    if not head.layout.is_plain:
        packed, scale_O = operand(head)
        linear.check(torch.empty(0, hidden, dtype=dtype), packed, head.shape[0], None, scale_O, dtype)
    for pair in layers:
        for bound in pair:
            if bound.hidden != hidden or bound.dtype != dtype or 2 * half > pair[0].head_dim:
                raise ValueError(
                    f"{NAME}: a layer of {bound.hidden} in {bound.dtype} with heads of {pair[0].head_dim} does not go"
                    f" with an embedding of {hidden} in {dtype} and {half} angles"
                )


def _check_step(step: StepInput) -> None:
    tokens = step.token_ids_T, step.positions_T, step.slots_T
    lists = *tokens, step.block_table_BC, step.query_starts_B, step.kv_lens_B, step.logits_rows_L
    on_cpu(NAME, *lists)
    for ints in lists:
        dense(NAME, ints)
    sequences = step.kv_lens_B.shape[0]
    if any(ints.dtype != torch.int32 for ints in lists):
        raise ValueError(f"{NAME}: lists of {[ints.dtype for ints in lists]}")
    if not (
        len({ints.shape for ints in tokens}) == 1
        and step.block_table_BC.shape[0] == sequences > 0
        and step.query_starts_B.shape == (sequences + 1,)
    ):
        raise ValueError(
            f"{NAME}: {[tuple(ints.shape) for ints in lists]} do not go together: token ids, positions, slots, block"
            " table, query starts, KV lengths and rows of logits"
        )
