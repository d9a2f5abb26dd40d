"""Token embedding, held whole by every rank, and the head that turns hidden states into logits."""

from __future__ import annotations

from torch import Tensor, nn

from atb_models import ops
from atb_models.layers.parameter import Build, Part, cut, set_parts


class Embedding(nn.Module):
    """Rows padded to a multiple of the ranks, so that a tied head can be a view of this rank's rows."""

    def __init__(self, build: Build, vocab: int, hidden: int) -> None:
        super().__init__()
        rows = build.width(vocab) * build.size
        self.weight = build.parameter(rows, hidden, padded=rows != vocab)
        set_parts(self.weight, {"": Part((vocab, hidden), self.weight.data[:vocab])})

    def forward(self, token_ids_T: Tensor) -> Tensor:
        return ops.embedding(token_ids_T, self.weight)


class Head(nn.Module):
    """Logits over the vocabulary, cut across the ranks; the padded columns are dropped after the gather."""

    def __init__(self, build: Build, vocab: int, hidden: int, tied: Embedding | None) -> None:
        super().__init__()
        self.build, self.vocab = build, vocab
        width = build.width(vocab)
        if tied is None:
            self.weight = build.parameter(width, hidden, padded=vocab % build.size != 0)
            set_parts(self.weight, {"": cut((vocab, hidden), 0, build.span(vocab), self.weight.data)})
        self.rows_VH = self.weight.data if tied is None else tied.weight.data[build.rank * width :][:width]

    def forward(self, x_LH: Tensor) -> Tensor:
        logits_LV = ops.linear(x_LH, self.rows_VH)
        if self.build.size > 1:
            logits_LV = ops.all_gather(logits_LV, self.build.collective())
        return ops.to_float(logits_LV[:, : self.vocab])
