"""How a token is drawn: by a number of the sequence's own random stream, from probabilities or from a few logits.

Shapes: B rows, W candidates.
"""

from __future__ import annotations

from collections import abc
from random import Random

import torch
from torch import Tensor

from atb_models.engine.sequence import Sequence
from atb_models.ops.top_logits import TopLogits

CANDIDATES = 64  # a row with a top_k of so many or fewer is drawn from this many of its greatest logits
# Uniform numbers end this far below 1, so that none can round up to the whole mass of a row.
BELOW_ONE = 1 - 2**-22
TINY = torch.finfo(torch.float32).tiny


def is_of_few(seq: Sequence) -> bool:
    """Whether the sequence is drawn from few logits."""
    return 0 < (seq.params.top_k or 0) <= CANDIDATES


def draw_of_few(top: TopLogits, seqs: abc.Sequence[Sequence]) -> list[int]:
    """One token per row from its CANDIDATES greatest logits, the first of which is finite.

    Always so many, on the host: a row's token has the same bits beside any others, and on any device.
    """
    logits_BW, params = torch.from_numpy(top.values_LK), [seq.params for seq in seqs]
    assert logits_BW.shape[1] == CANDIDATES
    # Not divided by their sum, which what follows does not need: that of all tokens is not known here.
    probs_BW = torch.exp((logits_BW - logits_BW[:, :1]) / temperatures(seqs, logits_BW))
    place_W = torch.arange(CANDIDATES)
    probs_BW *= place_W < torch.tensor([p.top_k for p in params])[:, None]
    mass_BW = running_sums(probs_BW)
    before_BW = torch.nn.functional.pad(mass_BW[:, :-1], (1, 0))
    least_B1 = column([p.top_p or 1.0 for p in params], probs_BW) * mass_BW[:, -1:]
    # The first stays, whatever becomes of a tiny top_p in float32.
    probs_BW *= (before_BW < least_B1) | (place_W == 0)
    places_B = invert(probs_BW, [p.min_p or 0.0 for p in params], uniform_numbers(seqs, probs_BW))
    tokens: list[int] = torch.from_numpy(top.ids_LK).gather(1, places_B[:, None]).squeeze(1).tolist()
    return tokens


def invert(probs_BW: Tensor, min_p: list[float], uniform_B1: Tensor) -> Tensor:
    """Where the distribution function of each row, less what min_p removes, passes the row's number -> columns [B]."""
    if any(min_p):
        least_B1 = column(min_p, probs_BW) * probs_BW.amax(-1, keepdim=True)
        probs_BW = probs_BW.masked_fill(probs_BW < least_B1, 0.0)
    mass_BW = running_sums(probs_BW)
    # The first column whose running mass exceeds the number: one of probability 0 adds no mass and is never the first.
    return torch.searchsorted(mass_BW, uniform_B1 * mass_BW[:, -1:], right=True).squeeze(1)


def running_sums(probs_BW: Tensor) -> Tensor:
    """Along each row; in a deterministic run on the CPU, for torch has no such sum on CUDA that repeats its bits."""
    if torch.are_deterministic_algorithms_enabled():
        return probs_BW.cpu().cumsum(-1).to(probs_BW.device)
    return probs_BW.cumsum(-1)


def temperatures(seqs: abc.Sequence[Sequence], like: Tensor) -> Tensor:
    """[B, 1]. 0 / 0 it must not become, however small it is in float32."""
    return column([max(seq.params.temperature or 0.0, TINY) for seq in seqs], like)


def uniform_numbers(seqs: abc.Sequence[Sequence], like: Tensor) -> Tensor:
    """[B, 1], in [0, 1): one number of each sequence's stream per token, from its seed, else the system's entropy."""
    return column([_random(seq).random() * BELOW_ONE for seq in seqs], like)


def _random(seq: Sequence) -> Random:
    if seq.random is None:
        seed = seq.params.seed
        seq.random = Random() if seed is None else Random(str(int(seed)))  # as text: Random(-1) is Random(1)
    return seq.random


def column(values: list[float], like: Tensor) -> Tensor:
    """[B, 1] float32, where `like` is."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
