"""Log-probabilities of single tokens from float32 logits. Shapes: B rows, V vocabulary, W ids of a row."""

from __future__ import annotations

import math
from collections import abc

import torch
from torch import Tensor

from atb_models.outputs import TokenLogprobs


@torch.inference_mode()
def token_logprobs(
    logits_BV: Tensor, tokens: abc.Sequence[int], tops: abc.Sequence[int], others: abc.Sequence[abc.Sequence[int]]
) -> list[TokenLogprobs]:
    """Per row {id: log-probability}: its token first, then its top N, then its other ids; softmax over all V.

    An id whose logit is no finite number has -infinity and is none of the top N: the softmax is over the others.
    Beside the logits it takes 4 bytes for each of them.
    """
    if not tokens:
        return []
    logprobs_BV = _log_softmax(logits_BV)
    width = 1 + max(map(len, others))
    named = [[token, *more, *[token] * (width - 1 - len(more))] for token, more in zip(tokens, others, strict=True)]
    top = logprobs_BV.topk(min(max(tops), logits_BV.shape[1]), sorted=True)
    ids = top.indices.tolist()
    named_BW = torch.tensor(named, device=logits_BV.device)
    values = torch.cat([logprobs_BV.gather(1, named_BW), top.values], -1).tolist()
    return [
        {named[row][0]: values[row][0]}
        | {top: value for top, value in zip(ids[row][:count], values[row][width:], strict=False) if value > -math.inf}
        | dict(zip(named[row], values[row], strict=False))
        for row, count in enumerate(tops)
    ]


def finite_only(logits_BV: Tensor) -> Tensor:
    """A copy in which what is no finite number is -infinity, the logit of a token that cannot come."""
    return torch.where(logits_BV.isfinite(), logits_BV, -torch.inf)


def _log_softmax(logits_BV: Tensor) -> Tensor:
    """Of the finite logits [B, V]; -infinity for the others."""
    logprobs_BV = torch.log_softmax(logits_BV, -1)
    bad_B = logprobs_BV[:, 0].isnan()  # one NaN or +infinity, or -infinity alone, makes the whole row NaN
    if bad_B.any():
        some_NV = torch.log_softmax(finite_only(logits_BV[bad_B]), -1)
        logprobs_BV[bad_B] = some_NV.nan_to_num_(nan=-torch.inf, neginf=-torch.inf)
    return logprobs_BV
