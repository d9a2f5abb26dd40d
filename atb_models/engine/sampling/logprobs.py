"""Log-probabilities of single tokens from float32 logits. Shapes: B rows, V vocabulary, W ids of a row."""

from __future__ import annotations

from collections import abc

import torch
from torch import Tensor

from atb_models.outputs import TokenLogprobs


@torch.inference_mode()
def token_logprobs(
    logits_BV: Tensor, tokens: abc.Sequence[int], tops: abc.Sequence[int], others: abc.Sequence[abc.Sequence[int]]
) -> list[TokenLogprobs]:
    """Per row {id: log-probability}: its token first, then its top N, then its other ids; softmax over all V.

    Beside the logits it takes 4 bytes for each of them.
    """
    if not tokens:
        return []
    logprobs_BV = torch.log_softmax(logits_BV, -1)
    width = 1 + max(map(len, others))
    named = [[token, *more, *[token] * (width - 1 - len(more))] for token, more in zip(tokens, others, strict=True)]
    top = logprobs_BV.topk(min(max(tops), logits_BV.shape[1]), sorted=True)
    ids = top.indices.tolist()
    named_BW = torch.tensor(named, device=logits_BV.device)
    values = torch.cat([logprobs_BV.gather(1, named_BW), top.values], -1).tolist()
    return [
        {named[row][0]: values[row][0]}
        | dict(zip(ids[row][:count], values[row][width:], strict=False))
        | dict(zip(named[row], values[row], strict=False))
        for row, count in enumerate(tops)
    ]
