"""Packs training texts into rows of fixed length, with the attention mask that keeps them apart.

A row holds two reading texts and as many question/answer texts as fit. The branches of a text all continue its prefix:
they see the prefix and themselves, never each other, and their positions start where the prefix ends. So a passage is
computed once for several questions, and each question still sees exactly what it will see alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import Text, qa_texts, reading_texts

ROW = 256
IGNORE, VERDICT, ANSWER = range(3)


@dataclass
class Row:
    """Per position: token, position in its text, text number, branch number (0: prefix), target and target's class."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)

    def extend(
        self, ids: list[int], start: int, text: int, branch: int, targets: list[int], classes: list[int]
    ) -> None:
        """Append ids; the last len(targets) of them predict the targets, whose classes are given."""
        silent = len(ids) - len(targets)
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self.texts += [text] * len(ids)
        self.branches += [branch] * len(ids)
        self.targets += [0] * silent + targets
        self.classes += [IGNORE] * silent + classes


@dataclass(frozen=True)
class Batch:
    """Tensors of [B, ROW]; mask [B, 1, ROW, ROW], True where a position may attend."""

    ids: Tensor
    positions: Tensor
    valid: Tensor
    mask: Tensor
    targets: Tensor
    classes: Tensor


class Packer:
    """An endless, seeded stream of batches."""

    def __init__(self, tok: Tokenizer, seed: int) -> None:
        self.tok = tok
        self.bos, self.eos = 0, 1
        self.reading, self.qa = reading_texts(seed), qa_texts(seed + 1)
        self.waiting = next(self.qa)

    def encode(self, text: str) -> list[int]:
        return self.tok.encode(text, add_special_tokens=False).ids

    def add(self, row: Row, text: Text, number: int, cls: int) -> bool:
        """Append a text to the row if it fits; `cls` is the class of its answers' tokens."""
        prefix = [self.bos, *self.encode(text.prefix)]
        pairs = [(self.encode(prompt), self.encode(answer)) for prompt, answer in text.branches]
        length = len(prefix) + sum(len(p) + len(a) for p, a in pairs)
        if len(row.ids) + length > ROW:
            return False
        row.extend(prefix, 0, number, 0, [], [])
        for branch, (prompt, answer) in enumerate(pairs, 1):
            # The eos after one word is easy: counted with the answers, so that it does not dilute the verdicts' mean.
            row.extend(
                prompt + answer, len(prefix), number, branch, [*answer, self.eos], [cls] * len(answer) + [ANSWER]
            )
        return True

    def row(self) -> Row:
        """Two reading texts, then questions while they fit."""
        row = Row()
        for number in (1, 2):
            fits = self.add(row, next(self.reading), number, VERDICT)
            assert fits, "two reading texts are longer than a row"
        number = 3
        while self.add(row, self.waiting, number, ANSWER):
            self.waiting, number = next(self.qa), number + 1
        return row

    def batches(self, rows: int) -> Iterator[Batch]:
        while True:
            yield collate([self.row() for _ in range(rows)])


def collate(rows: list[Row]) -> Batch:
    """Pad rows to ROW positions and build the mask: earlier, same text, and the prefix or the same branch."""

    def stack(name: str) -> Tensor:
        return torch.tensor([getattr(r, name) + [0] * (ROW - len(r.ids)) for r in rows])

    texts, branches = stack("texts"), stack("branches")
    same_text = texts[:, :, None] == texts[:, None, :]
    visible = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    causal = torch.ones(ROW, ROW, dtype=torch.bool).tril()
    mask = (same_text & visible & causal).unsqueeze(1)
    return Batch(stack("ids"), stack("positions"), texts > 0, mask, stack("targets"), stack("classes"))
