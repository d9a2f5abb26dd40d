"""The greatest logits of each row, where nobody needs the others. Shapes: W logits of a row on this rank."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atb_models.ops.cost import Cost, cost
from atb_models.ops.table import op

NO_LOGIT = -(1 << 63)  # stands behind all keys, where a row has fewer finite logits
ID_MASK = (1 << 32) - 1


def _top_logits_cost(out: Tensor, logits_LW: Tensor, count: int, first: int) -> Cost:
    return cost(0, (logits_LW,), (out,))


@op("TopLogits", cost=_top_logits_cost)
def top_logits(logits_LW: Tensor, count: int, first: int) -> Tensor:
    """The `count` greatest finite logits of each row, best first, as keys -> [L, count + 1] int64.

    first: id of the first column. A key holds the logit as float32, whose bits are turned so that they sort as the
    numbers do (-0.0 counts as 0.0), above 2^32 - 1 - id: of equal logits that of the lowest id is greater. The last
    column counts what is no finite number, and above it, in the upper 32 bits, NaN and +infinity alone. So the keys of
    ranks that hold parts of a row can be gathered side by side; `merged` reads them.
    """
    rows, width = logits_LW.shape
    floats_LW = logits_LW.float()
    is_odd_LW = (floats_LW.view(torch.int32) & 0x7FFFFFFF) >= 0x7F800000  # infinite or NaN
    is_greatest_LW = ~(floats_LW < torch.inf)
    bits_LW = (floats_LW + 0.0).view(torch.int32)
    bits_LW ^= (bits_LW >> 31).bitwise_and_(0x7FFFFFFF)
    keys_LW = bits_LW.to(torch.int64).bitwise_left_shift_(32)
    keys_LW |= ID_MASK - first - torch.arange(width, device=logits_LW.device)
    keys_LW.masked_fill_(is_odd_LW, NO_LOGIT)
    kept = min(count, width)
    out = keys_LW.new_full((rows, count + 1), NO_LOGIT)
    out[:, :kept] = keys_LW.topk(kept, sorted=True).values
    out[:, count] = is_odd_LW.sum(-1) + is_greatest_LW.sum(-1).bitwise_left_shift_(32)
    return out


def greedy_logits() -> int:
    """How many of the greatest logits a greedy step takes on the bound backend: the first, or 0, all of them."""
    return 0 if top_logits.backend == "reference" else 1


class TopLogits(NamedTuple):
    """Of each row its greatest finite logits, best first, as keys, NO_LOGIT where there are no more; and its count."""

    keys_LK: np.ndarray
    counts_L: np.ndarray

    @property
    def is_none_LK(self) -> np.ndarray:
        """Whether a place has no logit."""
        is_none: np.ndarray = self.keys_LK == NO_LOGIT
        return is_none

    @property
    def ids_LK(self) -> np.ndarray:
        """int64; any number where there is no logit."""
        ids: np.ndarray = ID_MASK - (self.keys_LK & ID_MASK)
        return ids

    @property
    def values_LK(self) -> np.ndarray:
        """float32; -infinity where there is no logit."""
        ordered_LK = (self.keys_LK >> 32).astype(np.int32)
        bits_LK = np.where(ordered_LK < 0, ordered_LK ^ 0x7FFFFFFF, ordered_LK)
        return np.where(self.is_none_LK, np.float32(-np.inf), bits_LK.view(np.float32))

    @property
    def not_finite_L(self) -> np.ndarray:
        """How many logits of the row are no finite number."""
        counts: np.ndarray = self.counts_L & ID_MASK
        return counts

    @property
    def bad_rows(self) -> list[int]:
        """The rows in which a logit is NaN or +infinity, or none is finite."""
        first_and_count = zip(self.keys_LK[:, 0].tolist(), self.counts_L.tolist(), strict=True)
        return [row for row, (key, count) in enumerate(first_and_count) if count > ID_MASK or key == NO_LOGIT]

    def best_ids(self, none: int) -> list[int]:
        """The id of the greatest logit of each row, `none` in its place where no logit is finite."""
        return [none if key == NO_LOGIT else ID_MASK - (key & ID_MASK) for key in self.keys_LK[:, 0].tolist()]

    def of(self, rows: list[int]) -> TopLogits:
        """Those of some rows."""
        return TopLogits(self.keys_LK[rows], self.counts_L[rows])


def merged(keys: Tensor, count: int) -> TopLogits:
    """The `count` best of all ranks from their keys [L, ranks * (count + 1)], on the host."""
    rows, ranks = len(keys), keys.shape[1] // (count + 1)
    parts = keys.cpu().numpy().reshape(rows, ranks, count + 1)
    if ranks == 1:
        return TopLogits(parts[:, 0, :-1], parts[:, 0, -1])
    best_LK = np.sort(parts[:, :, :-1].reshape(rows, ranks * count), axis=-1)[:, : -count - 1 : -1]
    return TopLogits(best_LK, parts[:, :, -1].sum(axis=-1))
