"""`logit_bias`: numbers that a request adds to the logits of single tokens. Shapes: V vocabulary."""

from __future__ import annotations

from collections import abc

import numpy as np
from torch import Tensor

from atb_models.engine.sampling.single_logits import SingleLogits
from atb_models.sampling_params import SamplingParams


class LogitBias:
    """The bias of each id that has one, the same for all tokens of the sequence. As in the OpenAI API."""

    __slots__ = ("_biases", "_ids")

    def __init__(self, biases: abc.Mapping[int, float]) -> None:
        self._ids = np.fromiter(biases.keys(), dtype=np.int64, count=len(biases))
        self._biases = np.fromiter(biases.values(), dtype=np.float32, count=len(biases))

    @classmethod
    def of(cls, params: SamplingParams, prompt_token_ids: abc.Sequence[int]) -> LogitBias | None:
        return cls(params.biases) if params.biases else None

    def accept(self, token: int) -> None:
        """A bias stays as it is."""

    @classmethod
    def apply(cls, logits_BV: Tensor, rows: abc.Sequence[int], processors: abc.Sequence[LogitBias]) -> None:
        biased = SingleLogits(logits_BV, rows, [one._ids for one in processors])
        biased.write(biased.read() + biased.values(np.concatenate([one._biases for one in processors])))
