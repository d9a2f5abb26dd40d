"""A step of a decoder as one call: the bits of its parts, what it takes, and what it keeps from call to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import ops
from atb_models.layers.mlp import MoE
from atb_models.layers.storage import METHODS, Quantization
from atb_models.models.decoder import Decoder
from atb_models.ops.composite.decoder import MOST_TOKENS
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.native.library import Library
from atb_models.ops.step import StepInput
from atb_models.ops.table import in_parts
from tests.crosses import crossed
from tests.native.cases import DTYPES, LEVELS
from tests.native.sublayers.layers import BLOCKS, MODELS, SIZE, build_layers, random_step
from tests.native.sublayers.test_bits import STORAGES
from tests.records import build_of

# Decoding, a chunk with decoding rows, no logits, all logits.
WANTED = [([1, 1, 1], [5, 170, 16], [0, 1, 2]), ([3, 1, 40], [30, 61, 40], [2, 3, 43]), ([7], [7], [])]
ALL = ([7], [9], list(range(7)))


class Model:
    """A decoder whose caches hold random numbers."""

    def __init__(self, folder: Path, fields: dict[str, Any], **build: Any) -> None:
        self.decoder: Decoder = build_layers(folder, fields, replace(build_of(torch.float16), **build))
        self.weights = self.decoder._weights
        self.caches = [make_cache(layer.attn.planes, BLOCKS, SIZE, _random) for layer in self.decoder.layers]

    def step(self, queries: list[int], lengths: list[int], wanted: list[int], top_logits: int = 0) -> StepInput:
        step, tokens = random_step(queries, lengths), sum(queries)
        positions = [i for q, kv in zip(queries, lengths, strict=True) for i in range(kv - q, kv)]
        return replace(
            step,
            token_ids_T=torch.randint(self.decoder.config.vocab_size, (tokens,), dtype=torch.int32),
            positions_T=torch.tensor(positions, dtype=torch.int32),
            logits_rows_L=torch.tensor(wanted, dtype=torch.int32),
            top_logits=top_logits,
        )

    def run(self, body: Callable[..., Tensor], step: StepInput) -> tuple[Tensor, list[LayerCache], list[Tensor]]:
        """The result, what the caches hold then, and the counters."""
        caches = [LayerCache((name, plane.clone()) for name, plane in cache.items()) for cache in self.caches]
        counters = [mlp.count_tokens() if isinstance(mlp, MoE) else None for mlp in self.decoder._feed_forwards]
        out = body(self.weights, counters, caches, replace(step))
        return out, caches, [counter for counter in counters if counter is not None]


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape) * (10 if shape[-1] > 1 else 1)).to(dtype)


def check(model: Model, step: StepInput) -> None:
    """Against the parts as the operation's definition calls them, and as the modules do."""
    ours, caches, counts = model.run(ops.decoder, step)
    for body in (ops.decoder.reference, lambda weights, counters, caches, step: model.decoder(step, caches)):
        with in_parts(ops.decoder):
            parts, expected, counted = model.run(body, step)
        assert torch.equal(ours, parts) and ours.dtype == parts.dtype
        for cache, other in zip(caches, expected, strict=True):
            assert all(torch.equal(plane, other[name]) for name, plane in cache.items())
        assert all(map(torch.equal, counts, counted))
    assert not torch.equal(caches[0].k_PSMD, model.caches[0].k_PSMD)
    assert all(counter.sum() > 0 for counter in counts) or not len(step.logits_rows_L)


@pytest.mark.parametrize(
    ("library", "fields", "dtype", "method", "kv_dtype"),
    crossed(LEVELS, MODELS, DTYPES, STORAGES),
    indirect=["library"],
)
@torch.inference_mode()
def test_the_bits_of_the_parts(
    bound: Library,
    tmp_path: Path,
    fields: dict[str, Any],
    dtype: torch.dtype,
    method: str | None,
    kv_dtype: torch.dtype | None,
) -> None:
    torch.set_num_threads(2)
    stored = None if method is None else Quantization(method, every=METHODS[method])
    model = Model(tmp_path, fields, dtype=dtype, quantization=stored, kv_dtype=kv_dtype)
    for queries, lengths, wanted in WANTED:
        check(model, model.step(queries, lengths, wanted, top_logits=1))
    check(model, model.step(*ALL))
    assert model.weights.bound is not None


@torch.inference_mode()
def test_a_tied_head_and_several_keys(bound: Library, tmp_path: Path) -> None:
    model = Model(tmp_path, MODELS[0] | {"tie_word_embeddings": True})
    assert model.weights.head.layout.is_plain
    for top_logits in (0, 1, 5):
        check(model, model.step(*WANTED[1], top_logits))
    model = Model(tmp_path, MODELS[2])
    check(model, model.step(*WANTED[1], 5))


@torch.inference_mode()
def test_long_steps_and_several_ranks_run_in_parts(
    bound: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a model with a part that the operation has no place for."""
    called: list[int] = []
    run = ops.decoder.run
    monkeypatch.setattr(ops.decoder, "run", lambda *args: (called.append(len(args[-1].token_ids_T)), run(*args))[1])
    model = Model(tmp_path, MODELS[0])
    for tokens in (MOST_TOKENS, MOST_TOKENS + 1):
        model.decoder(model.step([tokens], [tokens], [0]), model.caches)
    assert called == [MOST_TOKENS]
    with in_parts(ops.decoder):
        model.decoder(model.step([1], [1], [0]), model.caches)
    assert called == [MOST_TOKENS]
    assert build_layers(tmp_path, MODELS[0], build_of(torch.float16, 0, 2))._weights is None
    biased = Quantization("w8a8_dynamic", biases={"layers.1.input_norm.weight": frozenset([""])})
    assert build_layers(tmp_path, MODELS[0], build_of(torch.float16, quantization=biased))._weights is None


@torch.inference_mode()
def test_what_does_not_go_together_is_refused(bound: Library, tmp_path: Path) -> None:
    model = Model(tmp_path, MODELS[0])
    step = model.step(*WANTED[1], top_logits=1)

    def refused(match: str, **changed: Tensor) -> None:
        before = [{name: plane.clone() for name, plane in cache.items()} for cache in model.caches]
        with pytest.raises(ValueError, match=match):
            ops.decoder(model.weights, [None, None], model.caches, replace(step, **changed))
        for cache, other in zip(model.caches, before, strict=True):
            assert all(torch.equal(plane, other[name]) for name, plane in cache.items())

    ids, vocabulary = step.token_ids_T, model.decoder.config.vocab_size
    refused("a token id that the embedding does not have: Decoder", token_ids_T=ids + vocabulary)
    refused("a token id that the embedding does not have: Decoder", token_ids_T=ids - vocabulary)
    refused("lengths that do not go together: Decoder", logits_rows_L=step.logits_rows_L + 1)
    refused("lengths that do not go together: Decoder", logits_rows_L=step.logits_rows_L - 3)
    refused("lengths that do not go together: Decoder", kv_lens_B=step.kv_lens_B * 100)
    refused("a slot that the cache does not have: Decoder", slots_T=step.slots_T + BLOCKS * SIZE)
    refused("a block that the cache does not have: Decoder", block_table_BC=step.block_table_BC + BLOCKS)
    refused("Decoder: lists of", positions_T=step.positions_T.long())
    refused("Decoder: .* do not go together", positions_T=step.positions_T[1:])
    refused("Decoder: .* do not go together", query_starts_B=step.query_starts_B[1:])
    refused("Decoder: .* do not go together", block_table_BC=step.block_table_BC[1:])
    refused("Decoder: a tensor on meta", token_ids_T=ids.to("meta"))
    refused("Decoder: the last 1 of .* do not lie together", slots_T=step.slots_T.repeat_interleave(2)[::2])


@torch.inference_mode()
def test_weights_counters_and_caches_that_change_are_found(bound: Library, tmp_path: Path) -> None:
    """What is kept from call to call is what they were when it was made."""
    model = Model(tmp_path, MODELS[0])
    step = model.step(*WANTED[1])
    layer = model.decoder.layers[1]
    assert isinstance(layer.mlp, MoE)
    counters: list[Tensor | None] = [None, None]

    def logits() -> Tensor:
        return ops.decoder(model.weights, counters, model.caches, step)

    head, embedding = model.decoder.lm_head.weight, model.decoder.embed.weight
    moved = layer.attn.qkv.weight, layer.mlp.experts.down, layer.post_norm.weight, model.decoder.norm.weight, head
    for parameter in (*moved, embedding, model.decoder.inv_freq_D):
        before = logits()
        assert torch.equal(before, logits())
        parameter.data = parameter.data / 2
        after = logits()
        assert not torch.equal(before, after)
        assert torch.equal(after, ops.decoder.reference(model.weights, counters, model.caches, step))
    counted = [mlp.count_tokens() for mlp in model.decoder._feed_forwards if isinstance(mlp, MoE)]
    counters[:] = counted
    logits()
    top_k = layer.mlp.gating.top_k
    assert [counter.sum() for counter in counted] == [44 * top_k, 3 * top_k], "the last layer's of wanted tokens"
    model.caches[0]["k"] = torch.zeros_like(model.caches[0]["k"])
    assert not torch.equal(after, logits())
    assert model.caches[0]["k"].abs().max() > 0


@torch.inference_mode()
def test_what_the_library_has_no_form_for_runs_in_parts(bound: Library, tmp_path: Path) -> None:
    """A plane beside keys and values, which torch writes nothing to."""
    model = Model(tmp_path, MODELS[0])
    step = model.step(*WANTED[0])
    expected = ops.decoder(model.weights, [None, None], model.caches, step)
    model.caches[1]["latent"] = torch.zeros(BLOCKS, SIZE, 3)
    again = ops.decoder(model.weights, [None, None], model.caches, step)
    assert (expected - again).abs().max() < 0.05 * expected.abs().max()
