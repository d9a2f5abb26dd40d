"""Penalties on tokens that a sequence has already. Shapes: V vocabulary, N different tokens of all rows together."""

from __future__ import annotations

from array import array
from collections import abc

import numpy as np
import torch
from torch import Tensor

from atb_models.engine.sampling.single_logits import SingleLogits
from atb_models.sampling_params import SamplingParams


class Penalties:
    """Which tokens a sequence has and how often its output has each.

    Repetition penalty as in transformers, presence and frequency penalty as in the OpenAI API.
    """

    __slots__ = ("_counts", "_ids", "_places", "frequency", "presence", "repetition")

    def __init__(self, params: SamplingParams, prompt_token_ids: abc.Sequence[int]) -> None:
        self.repetition = params.repetition_penalty or 1.0
        self.presence, self.frequency = params.presence_penalty or 0.0, params.frequency_penalty or 0.0
        # Only the repetition penalty looks at the prompt.
        prompt = dict.fromkeys(prompt_token_ids) if self.repetition != 1.0 else {}
        self._places = {token: place for place, token in enumerate(prompt)}
        self._ids, self._counts = array("q", prompt), array("f", bytes(4 * len(prompt)))

    @classmethod
    def of(cls, params: SamplingParams, prompt_token_ids: abc.Sequence[int]) -> Penalties | None:
        return cls(params, prompt_token_ids) if params.has_penalties else None

    def accept(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token)
            self._counts.append(0.0)
        self._counts[place] += 1.0

    @classmethod
    def apply(cls, logits_BV: Tensor, rows: abc.Sequence[int], processors: abc.Sequence[Penalties]) -> None:
        seen = SingleLogits(logits_BV, rows, [np.array(one._ids) for one in processors])
        counts_N = np.concatenate([np.array(one._counts) for one in processors])
        repetition_N, presence_N, frequency_N = (
            seen.of_rows(np.array(values, dtype=np.float32))
            for values in zip(*((one.repetition, one.presence, one.frequency) for one in processors), strict=True)
        )
        repetition_N, presence_N, frequency_N = seen.values(
            np.stack([repetition_N, presence_N * (counts_N > 0), frequency_N * counts_N])
        )
        logits_N = seen.read()
        logits_N = torch.where(logits_N > 0, logits_N / repetition_N, logits_N * repetition_N)
        seen.write(logits_N - presence_N - frequency_N)
