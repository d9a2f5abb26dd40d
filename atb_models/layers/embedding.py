"""Token embedding, held whole by every rank, and the head that turns hidden states into logits."""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.build import Build, Wanted
from atb_models.layers.parameter import cut, hold
from atb_models.ops.weight import Weight


class Embedding(nn.Module):
    """Rows padded to a multiple of the ranks, so that a tied head can be a view of this rank's rows."""

    weight: nn.Parameter

    def __init__(self, build: Build, vocab: int, hidden: int) -> None:
        super().__init__()
        rows = build.tensor.share(vocab).width * build.tensor.size
        weight = build.parameter(rows, hidden, padded=rows != vocab)
        hold(self, "weight", weight, {"": cut((vocab, hidden), 0, (0, vocab))})

    def forward(self, token_ids_T: Tensor) -> Tensor:
        return ops.embedding(token_ids_T, self.weight)


class Head(nn.Module):
    """Logits over the vocabulary, cut across the ranks; the padded columns are dropped after the gather.

    Where only the greatest are wanted, each rank finds its own, and these alone are gathered.
    """

    def __init__(self, build: Build, vocab: int, hidden: int, tied: Embedding | None) -> None:
        super().__init__()
        self.ranks, self.vocab = build.tensor, vocab
        share = self.ranks.share(vocab)
        if tied is None:
            self.stored = build.weight(ops.linear, "weight_OI", Wanted((share.width, hidden), padded=share.padded))
            hold(self, "weight", self.stored, {"": cut((vocab, hidden), 0, share.span)})
        else:
            self.stored = Weight.plain(tied.weight.data[self.ranks.rank * share.width :][: share.width])

    def forward(self, x_LH: Tensor, top_logits: int = 0) -> Tensor:
        """-> logits [L, V] float32; with `top_logits`, so many keys of each row, see `Decoder.forward`."""
        logits_LV = ops.linear(x_LH, self.stored)
        if top_logits:
            first, stop = self.ranks.share(self.vocab).span
            keys = ops.top_logits(logits_LV[:, : stop - first], top_logits, first)
            return keys if self.ranks.size == 1 else ops.all_gather(keys, self.ranks.collective())
        if self.ranks.size > 1:
            logits_LV = ops.all_gather(logits_LV, self.ranks.collective())
        return ops.to_float(logits_LV[:, : self.vocab])
