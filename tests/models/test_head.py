"""The head's padded rows, where the ranks cannot share the vocabulary evenly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atb_models.layers.embedding import Embedding, Head
from atb_models.ops.top_logits import merged
from tests.records import build_of, part_of

HIDDEN, VOCAB = 4, 100534 % 1000  # XVERSE's last digits: divides by neither 4 nor 8


class Gather:
    """A group that puts together what each rank's head gives."""

    def __init__(self) -> None:
        self.shares: list[Tensor] = []

    def all_reduce(self, x: Tensor) -> Tensor:
        raise AssertionError("a head sums nothing")

    def all_gather(self, x: Tensor) -> Tensor:
        self.shares.append(x)
        return torch.cat(self.shares, dim=-1)


@pytest.mark.parametrize("size", [4, 5, 7, 8])
@pytest.mark.parametrize("is_tied", [False, True])
def test_padded_rows_never_win(size: int, is_tied: bool) -> None:
    """All real logits are negative, those of the padding 0."""
    group = Gather()
    for rank in range(size):
        build = build_of(torch.float32, rank, size, group)
        embedding = Embedding(build, VOCAB, HIDDEN) if is_tied else None
        head = Head(build, VOCAB, HIDDEN, embedding)
        part_of(embedding or head, "weight").fill_(-1.0)
        logits = head(torch.ones(2, HIDDEN))
    assert sum(share.shape[1] for share in group.shares) > VOCAB
    assert torch.equal(logits, torch.full((2, VOCAB), -float(HIDDEN)))


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_the_greatest_logits_of_all_ranks(size: int, is_tied: bool, count: int) -> None:
    """All are negative, those of the padding 0; every third row is one of few, so that equal ones are on all ranks."""
    rows = -torch.rand(VOCAB, HIDDEN) - 1
    rows[::3] = -torch.eye(HIDDEN)[torch.arange(len(rows[::3])) % HIDDEN]
    x = torch.eye(HIDDEN)[:2] + 0.25
    expected = (x @ rows.t()).sort(dim=-1, descending=True, stable=True)
    group = Gather()
    for rank in range(size):
        build = build_of(torch.float32, rank, size, group)
        embedding = Embedding(build, VOCAB, HIDDEN) if is_tied else None
        head = Head(build, VOCAB, HIDDEN, embedding)
        first, stop = build.tensor.share(VOCAB).span
        if embedding is not None:
            part_of(embedding, "weight").copy_(rows)
        else:
            part_of(head, "weight").copy_(rows[first:stop])
        keys = head(x, count)
    assert keys.shape == (2, size * (count + 1)) and keys.dtype == torch.int64
    top = merged(keys, count)
    assert top.ids_LK.tolist() == expected.indices[:, :count].tolist()
    assert top.values_LK.tolist() == expected.values[:, :count].tolist() and top.bad_rows == []
