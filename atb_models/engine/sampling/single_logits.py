"""Single logits of several rows as one tensor. Shapes: B rows, V vocabulary, N logits of all the rows together."""

from __future__ import annotations

from collections import abc

import numpy as np
import torch
from torch import Tensor

Int64 = np.ndarray  # one-dimensional, dtype int64


class SingleLogits:
    """The logits of some ids in each of some rows, to be read and written together.

    logits_BV: contiguous. ids: of each row, all different. What is made here has their order: row after row.
    """

    def __init__(self, logits_BV: Tensor, rows: abc.Sequence[int], ids: abc.Sequence[Int64]) -> None:
        self._flat, self._lengths = logits_BV.view(-1), [len(one) for one in ids]
        ids_N, vocab_size = np.concatenate(ids), logits_BV.shape[1]
        assert ids_N.max(initial=0) < vocab_size, "an id beyond the vocabulary would be one of the next row"
        self._places_N = self.values(ids_N + self.of_rows(np.asarray(rows) * vocab_size))

    def of_rows(self, values: abc.Sequence[float] | np.ndarray) -> np.ndarray:
        """A value for each row -> for each of its logits [N], on the host."""
        return np.repeat(values, self._lengths)

    def values(self, values_N: np.ndarray) -> Tensor:
        """Moved to where the logits are."""
        return torch.from_numpy(values_N).to(self._flat.device)

    def read(self) -> Tensor:
        """The logits [N]."""
        return self._flat.index_select(0, self._places_N)

    def write(self, logits_N: Tensor) -> None:
        """Put logits [N] in their places, but what a finite logit has become stays finite.

        What overflows in float32 is as large as float32 can be, and 0 * infinity, or 0 / 0, of a penalty is 0.
        """
        logits_N = torch.where(self.read().isfinite(), logits_N.nan_to_num(nan=0.0), logits_N)
        self._flat.index_copy_(0, self._places_N, logits_N)
