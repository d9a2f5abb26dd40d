"""Which sequences compute how many tokens in the next step.

First come, first served: `running` and then `waiting` are always in order of arrival. When blocks run out the newest
running sequence gives way and goes back to the head of the queue; so the oldest always advances.

Equal prompts share their blocks even if they are admitted to the same step: the first computes, the others follow it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

from atb_models.engine.block_manager import BlockManager
from atb_models.engine.sampling.sampler import NO_TOKEN
from atb_models.engine.sequence import Sequence, Status
from atb_models.errors import CapacityError, RequestError
from atb_models.limits import Limits
from atb_models.outputs import FinishReason


class Row:
    """A sequence's part of a step: compute its `num_tokens` tokens after the first `num_computed_tokens`.

    completes: they are all it has, so that their last logits give its next token. scores_prompt: the logits of all of
    them are wanted.
    """

    __slots__ = ("completes", "num_tokens", "scores_prompt", "seq")

    def __init__(self, seq: Sequence, num_tokens: int, completes: bool) -> None:
        self.seq, self.num_tokens, self.completes, self.scores_prompt = seq, num_tokens, completes, seq.scores_prompt

    @property
    def num_logits(self) -> int:
        """Logits wanted, of the row's last tokens."""
        return self.num_tokens if self.scores_prompt else int(self.completes)

    @property
    def is_prefill(self) -> bool:
        """True for a chunk of known tokens, False for a decode row (before `postprocess`)."""
        return self.seq.status is Status.PREFILL


@dataclass
class Budget:
    """What is left of a step: prompt tokens, and how many of them may have logits."""

    tokens: int
    logits: int

    def take(self, seq: Sequence) -> int:
        """Tokens of the sequence's next chunk; 0 when those of its kind are used up."""
        num_tokens = min(self.tokens, len(seq.token_ids) - seq.num_computed_tokens)
        if seq.scores_prompt:
            num_tokens = min(num_tokens, self.logits)
            self.logits -= num_tokens
        self.tokens -= num_tokens
        return num_tokens


class Scheduler:
    """Continuous batching over one block manager.

    limits: of a step. Recomputed tokens count as prompt tokens, decode rows do not.
    """

    def __init__(self, block_manager: BlockManager, limits: Limits) -> None:
        assert limits.block_size == block_manager.block_size
        assert min(limits.max_batch_size, limits.max_prefill_tokens, limits.max_seq_len, limits.max_prompt_logits) >= 1
        self.block_manager, self.limits = block_manager, limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_chunks = self.num_preemptions = self.num_prefix_hit_tokens = 0
        self._unfinished: dict[int, Sequence] = {}

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises RequestError or CapacityError if it could not run even alone."""
        seq.max_len = self._length_limit(seq)
        self._unfinished[seq.seq_id] = seq
        self.waiting.append(seq)

    def schedule(self) -> list[Row]:
        """The next step: decode rows first, then prefill chunks, each oldest first; empty only when nothing is left.

        `postprocess` must follow before the next one; where it did not, the step before counts as not run.
        """
        if self.block_manager.has_promises:
            self._give_up_step()
        rows = self._decode_rows()
        budget = Budget(self.limits.max_prefill_tokens, self.limits.max_prompt_logits)
        for seq in self.running:
            if seq.status is Status.PREFILL:
                self._add_chunk(rows, seq, budget)
        while budget.tokens and self._admit_next():
            self._add_chunk(rows, self.running[-1], budget)
        assert rows or not self._unfinished, "sequences are left but none can run"
        return rows

    def postprocess(self, rows: Iterable[Row], token_ids: Iterable[int]) -> None:
        """Record that the rows are computed and append `token_ids`, one for each row that completes, in row order.

        A row with `NO_TOKEN` gets none; its sequence must be ended before the next step.
        """
        tokens = iter(token_ids)
        self.block_manager.keep_promises()
        for row in rows:
            seq = row.seq
            token = next(tokens) if row.completes else None
            if seq.status is Status.FINISHED:  # aborted while the step ran
                continue
            seq.num_computed_tokens += row.num_tokens
            if token is not None and token != NO_TOKEN:
                seq.append(token)
                seq.status = Status.DECODE

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence in whatever state it is and free its blocks."""
        if seq.status is Status.WAITING:
            self.waiting.remove(seq)
        else:
            self.running.remove(seq)
            self.block_manager.free(seq)
        seq.status, seq.finish_reason, seq.finished_s = Status.FINISHED, reason, perf_counter()
        del self._unfinished[seq.seq_id]

    def abort(self, seq_id: int) -> Sequence | None:
        """End a sequence with "abort"; None if it has ended already or was never added."""
        seq = self._unfinished.get(seq_id)
        if seq is not None:
            self.finish(seq, "abort")
        return seq

    def has_work(self) -> bool:
        return bool(self._unfinished)

    def check(self) -> None:
        """Verify the invariants of queue and blocks. Raises AssertionError."""
        self.block_manager.check(self.running)
        assert len(self.running) <= self.limits.max_batch_size
        assert list(self._unfinished) == [seq.seq_id for seq in (*self.running, *self.waiting)], "out of order"
        assert all(seq.status in (Status.PREFILL, Status.DECODE) for seq in self.running)
        assert all(seq.status is Status.WAITING and not seq.block_table for seq in self.waiting)
        assert all(seq.num_computed_tokens < len(seq.token_ids) < seq.max_len for seq in self.running)

    def _decode_rows(self) -> list[Row]:
        """A row for each sequence in decode, after making room for its next token."""
        rows: list[Row] = []
        running, size = self.running, self.block_manager.block_size
        i = 0
        while i < len(running):  # preemption shortens the list from its end, never before i
            seq = running[i]
            i += 1
            if seq.status is Status.DECODE:
                if len(seq.token_ids) <= len(seq.block_table) * size or self._make_room(seq):
                    rows.append(self._row(seq, 1))
        return rows

    def _row(self, seq: Sequence, num_tokens: int) -> Row:
        """The sequence's part of the step; the blocks that it completes are offered to those admitted after it."""
        stop, size = seq.num_computed_tokens + num_tokens, self.block_manager.block_size
        if stop - seq.num_registered_blocks * size >= size:
            self.block_manager.register(seq, stop)
        return Row(seq, num_tokens, stop == len(seq.token_ids))

    def _give_up_step(self) -> None:
        """Forget a step that did not run to its end, and what others were to find computed by it."""
        while any(map(self.block_manager.relies_on_promises, self.running)):
            self._preempt_newest()
        self.block_manager.break_promises()
        for seq in self.running:
            seq.num_registered_blocks = seq.num_computed_tokens // self.block_manager.block_size

    def _make_room(self, seq: Sequence) -> bool:
        """Get the block for the sequence's next token, preempting newer ones; False if it was itself the newest."""
        while not self.block_manager.allocate(seq, len(seq.token_ids)):
            assert len(self.running) > 1, "a sequence was admitted that cannot finish alone"
            if self._preempt_newest() is seq:
                return False
        return True

    def _preempt_newest(self) -> Sequence:
        """Take the newest running sequence's blocks; its tokens are computed again when its turn comes."""
        seq = self.running.pop()
        self.block_manager.free(seq)
        seq.status = Status.WAITING
        seq.prompt_logits.clear()
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(seq)
        return seq

    def _admit_next(self) -> bool:
        """Move the head of the queue to `running` if places and blocks allow.

        One that was preempted in this step comes back at once only if it can share more blocks now than it held.
        """
        if not self.waiting or len(self.running) >= self.limits.max_batch_size:
            return False
        seq = self.waiting[0]
        if not self.block_manager.admit(seq):
            return False
        self.running.append(self.waiting.popleft())
        seq.status = Status.PREFILL
        if seq.scheduled_s is None:  # later it finds its own blocks again, which saved nobody anything
            seq.scheduled_s, seq.num_cached_tokens = perf_counter(), seq.num_computed_tokens
            self.num_prefix_hit_tokens += seq.num_cached_tokens
        return True

    def _add_chunk(self, rows: list[Row], seq: Sequence, budget: Budget) -> None:
        """Append the sequence's next prefill chunk if the budget has tokens for it."""
        num_tokens = budget.take(seq)
        if num_tokens:
            rows.append(self._row(seq, num_tokens))
            self.num_chunks += 1

    def _length_limit(self, seq: Sequence) -> int:
        """Tokens at which the sequence ends. The last one is never computed, so KV blocks hold one token less."""
        prompt, size, total = seq.num_prompt_tokens, self.block_manager.block_size, self.block_manager.num_blocks
        limit = self.limits.max_seq_len
        room = limit if seq.want_prompt_logits else limit - 1
        if prompt > room:
            raise RequestError(
                f"the prompt has {prompt} tokens, but max_seq_len {limit} leaves room for {room};"
                " shorten the prompt or raise max_seq_len"
            )
        if seq.want_prompt_logits:
            limit = prompt + 1
        elif seq.params.max_tokens is not None:
            limit = min(limit, prompt + seq.params.max_tokens)
        if seq.ends_with_pool and prompt <= total * size:
            limit = min(limit, total * size + 1)
        needed = self.block_manager.blocks_for(limit - 1)
        if needed > total:
            raise CapacityError(
                f"the request needs {needed} KV blocks of {size} tokens ({prompt} prompt + up to {limit - prompt} new"
                f" tokens), but there are {total} in all; shorten the prompt, lower max_tokens or raise kv_blocks"
            )
        return limit
