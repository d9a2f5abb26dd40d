"""Who owns which KV block: reference counts, prefix reuse, and the free queue.

A block's life: free -> owned by one sequence that writes into it -> full as soon as a scheduled step has computed it:
from then on registered under the hash of its tokens and of everything before them, so that others may share it
read-only -> unowned, waiting in the free queue where it is still found by its hash -> taken for new tokens, least
recently used first, and forgotten.

Within a step every row's keys and values are written before any row attends to them, so rows of the step that computes
a block may share it already.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from atb_models.engine.sequence import Sequence


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` tokens. A method that fails for want of blocks changes nothing."""

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool = True) -> None:
        self.num_blocks, self.block_size, self.prefix_cache = num_blocks, block_size, prefix_cache
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # the first is taken first
        self._block_of: dict[bytes, int] = {}
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._tokens_of: list[list[int]] = [[] for _ in range(num_blocks)]  # of registered blocks, to verify a match
        self._promised: set[int] = set()  # registered, and computed by the step that is scheduled or runs

    @property
    def num_free(self) -> int:
        """Blocks nobody owns, those that the prefix cache still knows included."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens need."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, seq: Sequence) -> list[int]:
        """The registered blocks that hold the longest known prefix of the sequence, never its last token."""
        if not self.prefix_cache or seq.scores_prompt:
            return []
        blocks: list[int] = []
        size = self.block_size
        for i in range((len(seq.token_ids) - 1) // size):
            block = self._block_of.get(self._chain_hash(seq, i))
            if block is None or self._tokens_of[block] != seq.token_ids[i * size : (i + 1) * size]:
                break
            blocks.append(block)
        return blocks

    def admit(self, seq: Sequence) -> bool:
        """Give a sequence without blocks room for all its tokens, shared blocks first; False if there are too few.

        Sets `num_computed_tokens` to the tokens found in the prefix cache, those of promised blocks included.
        """
        assert not seq.block_table and not seq.num_computed_tokens
        shared = self.match_prefix(seq)
        num_new = self.blocks_for(len(seq.token_ids)) - len(shared)
        if num_new > len(self._free) - sum(not self._ref_counts[block] for block in shared):
            return False
        for block in shared:
            if not self._ref_counts[block]:
                del self._free[block]
            self._ref_counts[block] += 1
        seq.block_table = shared + [self._take() for _ in range(num_new)]
        seq.num_registered_blocks = len(shared)
        seq.num_computed_tokens = len(shared) * self.block_size
        return True

    def allocate(self, seq: Sequence, num_tokens: int) -> bool:
        """Lengthen the block table until it holds `num_tokens` tokens; False if there are too few blocks."""
        num_new = self.blocks_for(num_tokens) - len(seq.block_table)
        if num_new > len(self._free):
            return False
        seq.block_table.extend(self._take() for _ in range(num_new))
        return True

    def register(self, seq: Sequence, num_tokens: int) -> None:
        """Offer the sequence's blocks that are full with `num_tokens` tokens, which the scheduled step completes.

        `keep_promises` must follow when the step has run, `break_promises` if it does not run to its end.
        """
        num_full = num_tokens // self.block_size
        for i in range(seq.num_registered_blocks, num_full) if self.prefix_cache else ():
            key = self._chain_hash(seq, i)
            if key not in self._block_of:  # else a sequence that could not share it computes it too: it stays private
                block = seq.block_table[i]
                self._block_of[key], self._hash_of[block] = block, key
                self._tokens_of[block] = seq.token_ids[i * self.block_size : (i + 1) * self.block_size]
                self._promised.add(block)
        seq.num_registered_blocks = num_full

    def keep_promises(self) -> None:
        """The step has run: what was registered for it is computed."""
        self._promised.clear()

    def break_promises(self) -> None:
        """The step was given up: forget the blocks that were registered for it."""
        for block in self._promised:
            self._forget(block)
        self._promised.clear()

    @property
    def has_promises(self) -> bool:
        """Whether blocks are registered for a step that has not run yet."""
        return bool(self._promised)

    def relies_on_promises(self, seq: Sequence) -> bool:
        """Whether a token that counts as computed lies in a promised block."""
        return not self._promised.isdisjoint(seq.block_table[: seq.num_computed_tokens // self.block_size])

    def free(self, seq: Sequence) -> None:
        """Give the sequence's blocks back: unregistered ones are reused first, ends of prefixes before beginnings."""
        for block in reversed(seq.block_table):
            self._ref_counts[block] -= 1
            if not self._ref_counts[block]:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)
        seq.block_table = []
        seq.num_computed_tokens = seq.num_registered_blocks = 0

    def _take(self) -> int:
        """The least recently used free block, owned once and no longer found by its old hash."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._ref_counts[block] = 1
        return block

    def _forget(self, block: int) -> None:
        """From now on the block is not found by its hash, if it has one."""
        key = self._hash_of[block]
        if key is not None:
            del self._block_of[key]
            self._hash_of[block] = None

    def _chain_hash(self, seq: Sequence, index: int) -> bytes:
        """Hash of the tokens of block `index` and, through its predecessor's hash, of all tokens before them."""
        hashes, size = seq.block_hashes, self.block_size
        while len(hashes) <= index:
            start = len(hashes) * size
            tokens = array("q", seq.token_ids[start : start + size]).tobytes()
            hashes.append(blake2b((hashes[-1] if hashes else b"") + tokens, digest_size=16).digest())
        return hashes[index]

    def check(self, seqs: Iterable[Sequence]) -> None:
        """Verify every invariant against the sequences that hold blocks. Raises AssertionError."""
        seqs = list(seqs)
        owners = Counter(block for seq in seqs for block in seq.block_table)
        for block, count in enumerate(self._ref_counts):
            assert count == owners[block], f"block {block}: {count} references, {owners[block]} owners"
            assert (count == 0) == (block in self._free), f"block {block}: {count} references, in free queue or not"
            key = self._hash_of[block]
            assert key is None or self._block_of[key] == block, f"block {block}: its hash leads to another block"
        assert len(self._free) <= self.num_blocks
        assert len(self._block_of) == sum(key is not None for key in self._hash_of), "a hash too many"
        for seq in seqs:
            size = self.block_size
            assert len(seq.block_table) * size >= seq.num_computed_tokens, f"sequence {seq.seq_id}: too few blocks"
            assert len(set(seq.block_table)) == len(seq.block_table), f"sequence {seq.seq_id}: a block twice"
            for i, block in enumerate(seq.block_table):
                if (i + 1) * size > seq.num_computed_tokens and block not in self._promised:  # still written to
                    assert owners[block] == 1, f"block {block}: shared while sequence {seq.seq_id} writes into it"
                    assert self._hash_of[block] is None, f"block {block}: offered before it was computed"
                elif self._hash_of[block] is not None:
                    assert self._hash_of[block] == self._chain_hash(seq, i), f"block {block}: another prefix's hash"
