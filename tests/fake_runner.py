"""A runner without a model: its next token is a function of all tokens before it, as they stand in a paged KV store.

What a token leaves in its slot depends on what the token before it left in its own; the logits depend on every slot of
the sequence. A wrong block table, a stale or overwritten block, a missed or repeated token changes all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from atb_models import ops
from atb_models.engine.block_manager import BlockManager
from atb_models.engine.engine import Engine
from atb_models.engine.scheduler import Row, Scheduler
from atb_models.limits import Limits

VOCAB = 53
LOGITS = torch.randn(997, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
START = 12345


def state_after(state: int, token: int) -> int:
    return hash((state, token))


def logits_of(states: Iterable[int]) -> Tensor:
    return LOGITS[hash(tuple(states)) % len(LOGITS)]


def states_of(tokens: Iterable[int]) -> list[int]:
    states, state = [], START
    for token in tokens:
        state = state_after(state, token)
        states.append(state)
    return states


def alone(prompt: list[int], max_tokens: int, eos: Iterable[int] = ()) -> list[int]:
    """The greedy answer by definition: no engine, no blocks."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(int(logits_of(states_of(tokens)).argmax()))
        if tokens[-1] in eos:
            break
    return tokens[len(prompt) :]


class FakeRunner:
    """`look` is called with the rows of each step; `steps` counts them, `steps_of_few` those without all logits."""

    gives_top_logits = True

    def __init__(self, num_blocks: int, block_size: int, look: Callable[[list[Row]], None] | None = None) -> None:
        self.block_size, self.look, self.steps, self.steps_of_few = block_size, look, 0, 0
        self.kv = [0] * (num_blocks * block_size)

    def run(self, rows: list[Row], top_logits: int = 0) -> Tensor:
        logits_LV = self.logits(rows)
        if not top_logits:
            return logits_LV
        self.steps_of_few += 1
        return ops.top_logits.reference(logits_LV, top_logits, 0)

    def logits(self, rows: list[Row]) -> Tensor:
        self.steps += 1
        if self.look is not None:
            self.look(rows)
        written: set[int] = set()
        logits: list[Tensor] = []
        for row in rows:
            slots = self._slots(row)
            start, kept = row.seq.num_computed_tokens, len(slots) - row.num_logits
            for i in range(start, len(slots)):
                assert slots[i] not in written, "two rows write the same slot"
                written.add(slots[i])
                before = self.kv[slots[i - 1]] if i else START
                self.kv[slots[i]] = state_after(before, row.seq.token_ids[i])
                if i >= kept:
                    logits.append(logits_of(self.kv[slot] for slot in slots[: i + 1]))
        return torch.stack(logits) if logits else torch.empty(0, VOCAB)

    def _slots(self, row: Row) -> list[int]:
        """Slots of all the row's tokens from the sequence's first to this step's last."""
        size, table = self.block_size, row.seq.block_table
        stop = row.seq.num_computed_tokens + row.num_tokens
        assert row.num_tokens > 0 and stop <= len(row.seq.token_ids)
        return [table[i // size] * size + i % size for i in range(stop)]


class Letters:
    """A tokenizer: token 0 is "a", 1 is "b" ... and round again."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + token % 26) for token in ids)


def fake_engine(
    num_blocks: int = 48,
    block_size: int = 4,
    *,
    prefix_cache: bool = True,
    batch: int = 8,
    prefill: int = 64,
    max_seq_len: int = 100,
    prompt_logits: int = 64,
    look: Callable[[list[Row]], None] | None = None,
    **options: object,
) -> Engine:
    limits = Limits(batch, prefill, max_seq_len, block_size, prompt_logits)
    scheduler = Scheduler(BlockManager(num_blocks, block_size, prefix_cache), limits)
    return Engine(FakeRunner(num_blocks, block_size, look), scheduler, vocab_size=VOCAB, **options)
