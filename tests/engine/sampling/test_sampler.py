"""Sampling against an independent computation in numpy float64, token by token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from atb_models.engine.sampling.sampler import sample
from atb_models.engine.sequence import Sequence
from atb_models.sampling_params import SamplingParams

VOCAB = 40


class EvenlySpread:
    """In place of a random stream: row i of n draws (i + 1/2) / n, so that counts follow the probabilities exactly."""

    def __init__(self, value: float) -> None:
        self.random = lambda: value


def sequence(prompt: list[int] | None = None, output: list[int] | None = None, **fields: object) -> Sequence:
    seq = Sequence(prompt or [1, 2, 3], SamplingParams(**fields).resolve({}))
    for token in output or []:
        seq.append(token)
    return seq


def expected(logits: np.ndarray, prompt: list[int], output: list[int], **fields: float) -> np.ndarray:
    """Probability of each token by the definition of every field."""
    x = logits.astype(np.float64).copy()
    rep = fields.get("repetition_penalty", 1.0)
    for token in set(prompt) | set(output):
        x[token] = x[token] / rep if x[token] > 0 else x[token] * rep
    for token, count in Counter(output).items():
        x[token] -= fields.get("presence_penalty", 0.0) + count * fields.get("frequency_penalty", 0.0)
    if not fields.get("temperature"):
        return np.eye(len(x))[x.argmax()]
    x = x / fields["temperature"]
    probs = np.exp(x - x.max())
    order = np.argsort(-x, kind="stable")
    k = int(fields.get("top_k", 0))
    probs[order[k:] if k > 0 else []] = 0
    probs /= probs.sum()
    mass, kept = 0.0, []
    for token in order:
        if mass < fields.get("top_p", 1.0) or fields.get("top_p", 1.0) == 1.0:
            kept.append(token)
        mass += probs[token]
    probs[np.setdiff1d(np.arange(len(x)), kept)] = 0
    probs[probs < fields.get("min_p", 0.0) * probs.max()] = 0
    return probs / probs.sum()


def frequencies(logits: torch.Tensor, draws: int, prompt: list[int], output: list[int], **fields: float) -> np.ndarray:
    seqs = [sequence(prompt, output, **fields) for _ in range(draws)]
    for i, seq in enumerate(seqs):
        seq.random = EvenlySpread((i + 0.5) / draws)
    tokens, logprobs = sample(logits.expand(draws, -1), seqs)
    assert logprobs is None
    return np.bincount(tokens, minlength=logits.shape[-1]) / draws


CASES: list[dict[str, float]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1e-30},
    {"temperature": 1e-40},
    {"temperature": 1e-300},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": -1},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.5},
    {"temperature": 1.5, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "repetition_penalty": 0.6},
    {"temperature": 1.0, "presence_penalty": 1.5},
    {"temperature": 1.0, "presence_penalty": -2.0},
    {"temperature": 1.0, "frequency_penalty": 0.7},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.8},
    {"temperature": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.2},
    {
        "temperature": 1.3, "top_k": 15, "top_p": 0.9, "min_p": 0.05,
        "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4,
    },
    {"repetition_penalty": 3.0, "presence_penalty": 1.0, "frequency_penalty": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_every_field_gives_the_defined_distribution(fields: dict[str, float]) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(5)) * 2
    top = logits.argsort(descending=True).tolist()
    prompt, output = [top[0], top[5], top[30]], [top[1], top[2], top[1], top[1], top[31]]
    want = expected(logits.numpy(), prompt, output, **fields)
    got = frequencies(logits, 2000, prompt, output, **fields)
    assert ((got > 0) <= (want > 0)).all(), "a token that the filters exclude"
    assert np.abs(got - want).max() <= 1.1 / 2000


@pytest.mark.parametrize("fields", [{"top_k": 300}, {"top_p": 0.6}, {"top_p": 0.997}, {"top_k": 500, "top_p": 0.9}])
def test_filters_over_a_large_vocabulary(fields: dict[str, float]) -> None:
    logits = torch.randn(800, generator=torch.Generator().manual_seed(6))
    want = expected(logits.numpy(), [0], [], temperature=1.0, **fields)
    got = frequencies(logits, 6000, [0], [], temperature=1.0, **fields)
    assert ((got > 0) <= (want > 0)).all()
    assert (got > 0).sum() >= 0.98 * (want > 1.5 / 6000).sum() and np.abs(got - want).max() <= 1.5 / 6000


def test_ties_are_cut_by_id() -> None:
    flat = torch.zeros(8)
    assert frequencies(flat, 80, [0], [], temperature=1.0, top_p=0.5).tolist() == [0.25] * 4 + [0.0] * 4
    assert frequencies(flat, 80, [0], [], temperature=1.0, top_k=2).tolist() == [0.5] * 2 + [0.0] * 6
    assert frequencies(flat, 80, [0], [], temperature=1.0).tolist() == [0.125] * 8


@pytest.mark.parametrize("fields", [{}, {"top_k": 6}, {"min_p": 0.01}, {"top_p": 5e-324}], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_random_range_give_possible_tokens(value: float, fields: dict[str, float]) -> None:
    logits = torch.full((8,), -200.0)
    logits[2:5] = torch.tensor([1.0, 1.1, 0.9])
    seq = sequence(temperature=1.0, **fields)
    seq.random = EvenlySpread(value)
    assert sample(logits[None], [seq])[0][0] in (2, 3, 4)


def test_greedy_is_the_first_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0], [-5.0, -7.0, -9.0, -5.0]])
    assert sample(logits, [sequence(), sequence(temperature=0.0)]) == ([1, 0], None)


def test_the_seeded_stream_follows_the_distribution() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(7)) * 2
    want = expected(logits.numpy(), [0], [], temperature=1.0, top_k=10)
    seqs = [sequence(temperature=1.0, top_k=10, seed=seed) for seed in range(50)]
    tokens = [token for _ in range(200) for token in sample(logits.expand(50, -1), seqs)[0]]
    got = np.bincount(tokens, minlength=VOCAB) / len(tokens)
    assert (np.abs(got - want) <= 4 * np.sqrt(want * (1 - want) / len(tokens))).all()


def test_a_seed_gives_the_same_tokens_alone_and_anywhere_in_a_batch() -> None:
    fields = {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 11}
    variants = [fields, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": -4, "logprobs": 2}]
    mates = [{}, {"temperature": 1.0, "top_p": 0.999}, {"top_k": 3, "temperature": 2.0}, {"presence_penalty": 1.0}]
    logits = torch.randn(12, 600, generator=torch.Generator().manual_seed(8))
    for variant in variants:
        lone = sequence(**variant)
        for row in logits:
            lone.append(sample(row[None], [lone])[0][0])
        for place in (0, 3, 6):
            seqs = [sequence(**mates[i % len(mates)]) for i in range(6)]
            seqs.insert(place, sequence(**variant))
            for i, row in enumerate(logits):
                batch = logits.roll(i, 0)[:7].clone()
                batch[place] = row
                for seq, token in zip(seqs, sample(batch, seqs)[0], strict=True):
                    seq.append(token)
            assert seqs[place].output_token_ids == lone.output_token_ids


def test_seeds_differ_and_no_seed_is_fresh() -> None:
    flat = torch.zeros(1, 1000)

    def stream(**fields: object) -> list[int]:
        seq = sequence(temperature=1.0, **fields)
        return [sample(flat, [seq])[0][0] for _ in range(8)]

    assert stream(seed=1) == stream(seed=1)
    assert stream(seed=1) != stream(seed=-1)
    assert stream(seed=1) != stream(seed=2)
    assert stream(seed=2**70) != stream(seed=0)
    assert stream() != stream()


def test_penalties_follow_the_growing_output() -> None:
    """The counts that are kept from step to step are those of a fresh start."""
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(9))
    fields = {"repetition_penalty": 1.1, "frequency_penalty": 0.3, "presence_penalty": 0.2}
    seq = sequence([4, 4, 9], **fields)
    for _ in range(30):
        output = seq.output_token_ids
        want = int(expected(logits.numpy(), [4, 4, 9], output, **fields).argmax())
        seq.append(sample(logits[None], [seq])[0][0])
        assert seq.token_ids[-1] == want
    assert len(set(seq.output_token_ids)) > 5


def test_logprobs_are_those_of_the_raw_model() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(10))
    want = logits.double().log_softmax(-1).numpy()
    top = np.argsort(-want, -1)
    seqs = [
        sequence(logprobs=3, temperature=0.5, top_k=2, seed=0, repetition_penalty=1.5),
        sequence(),
        sequence([int(top[2, 0])], repetition_penalty=9.0, logprobs=1),
    ]
    tokens, logprobs = sample(logits, seqs)
    assert logprobs is not None and logprobs[1] is None and tokens[2] != top[2, 0]
    for row, count in ((0, 3), (2, 1)):
        got = logprobs[row]
        assert got is not None and next(iter(got)) == tokens[row]
        assert set(got) == {tokens[row], *top[row, :count].tolist()}
        assert all(abs(value - want[row, token]) < 1e-5 for token, value in got.items())
    assert len(logprobs[2] or {}) == 2
    _, only_chosen = sample(logits[:1], [sequence(logprobs=0)])
    assert only_chosen is not None and list(only_chosen[0] or {}) == [int(top[0, 0])]
    _, everything = sample(logits[:1], [sequence(logprobs=10**6)])
    assert everything is not None and len(everything[0] or {}) == VOCAB


def test_the_logits_are_left_as_they_are_and_may_come_from_inference_mode() -> None:
    with torch.inference_mode():
        logits = torch.randn(2, VOCAB)
    before = logits.clone()
    seqs = [sequence(temperature=1.0, top_p=0.5, repetition_penalty=2.0, logprobs=1) for _ in range(2)]
    for _ in range(3):
        tokens, _ = sample(logits, seqs)
        for seq, token in zip(seqs, tokens, strict=True):
            seq.append(token)
    assert torch.equal(logits, before)


def test_no_rows() -> None:
    assert sample(torch.empty(0, VOCAB), []) == ([], None)
