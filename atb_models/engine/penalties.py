"""What the penalties on repeated tokens know of a sequence."""

from __future__ import annotations

from collections import abc

import torch


class SeenTokens:
    """Which tokens a sequence has (prompt and output) and how often its output has each."""

    __slots__ = ("counts_V", "num_tokens", "seen_V")

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.counts_V = torch.zeros(vocab_size, dtype=torch.float32, device=device)
        self.num_tokens = 0  # of the sequence's tokens that are counted already

    def update(self, token_ids: abc.Sequence[int], num_prompt_tokens: int) -> None:
        """Count the tokens the sequence got since the last call; the first `num_prompt_tokens` are its prompt."""
        fresh = torch.tensor(token_ids[self.num_tokens :], dtype=torch.int64, device=self.seen_V.device)
        self.seen_V[fresh] = True
        outputs = fresh[max(0, num_prompt_tokens - self.num_tokens) :]
        self.counts_V.index_add_(0, outputs, torch.ones_like(outputs, dtype=torch.float32))
        self.num_tokens = len(token_ids)
