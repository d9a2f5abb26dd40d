"""Blocks: reference counts, prefix reuse, eviction."""

from __future__ import annotations

import pytest

from atb_models.engine.block_manager import BlockManager
from atb_models.engine.sequence import Sequence
from atb_models.sampling_params import SamplingParams


def sequence(tokens: list[int], **options: bool) -> Sequence:
    return Sequence(tokens, SamplingParams(max_tokens=8).resolve({}), **options)


def computed(manager: BlockManager, tokens: list[int]) -> Sequence:
    """A sequence that was admitted and whose tokens but the last are computed."""
    seq = sequence(tokens)
    assert manager.admit(seq)
    seq.num_computed_tokens = len(tokens) - 1
    manager.register(seq, seq.num_computed_tokens)
    manager.keep_promises()
    return seq


def test_blocks_are_counted_and_come_back() -> None:
    manager = BlockManager(4, 4)
    seq = sequence(list(range(9)))
    assert manager.admit(seq) and len(seq.block_table) == 3 and manager.num_free == 1
    assert manager.allocate(seq, 12) and len(seq.block_table) == 3
    assert manager.allocate(seq, 13) and len(seq.block_table) == 4 and manager.num_free == 0
    table = list(seq.block_table)
    assert not manager.allocate(seq, 17) and seq.block_table == table
    other = sequence([1])
    assert not manager.admit(other) and other.block_table == []
    manager.free(seq)
    assert manager.num_free == 4 and seq.block_table == [] and seq.num_computed_tokens == 0
    manager.check([])


def test_a_computed_prefix_is_shared() -> None:
    manager = BlockManager(8, 4)
    first = computed(manager, list(range(10)))
    manager.check([first])
    second = sequence([*range(8), 50, 51, 52])
    assert manager.match_prefix(second) == first.block_table[:2]
    assert manager.admit(second)
    assert second.block_table[:2] == first.block_table[:2] and second.block_table[2] != first.block_table[2]
    assert second.num_computed_tokens == 8 and manager.num_free == 4
    manager.check([first, second])
    manager.free(first)
    manager.check([second])
    assert manager.num_free == 5


def test_nothing_is_shared_before_a_step_computes_it() -> None:
    manager = BlockManager(8, 4)
    first = sequence(list(range(10)))
    manager.admit(first)
    assert manager.match_prefix(sequence(list(range(10)))) == []
    manager.register(first, 3)
    assert manager.match_prefix(sequence(list(range(10)))) == [] and not manager.has_promises
    manager.register(first, 7)
    assert manager.match_prefix(sequence(list(range(10)))) == first.block_table[:1] and manager.has_promises
    manager.check([first])


def test_a_broken_promise_is_forgotten() -> None:
    manager = BlockManager(8, 4)
    first, twin = sequence(list(range(10))), sequence(list(range(10)))
    manager.admit(first)
    manager.register(first, 4)
    first.num_computed_tokens = 4
    manager.keep_promises()
    manager.register(first, 10)
    manager.admit(twin)
    assert twin.num_computed_tokens == 8
    assert manager.relies_on_promises(twin) and not manager.relies_on_promises(first)
    manager.free(twin)
    manager.break_promises()
    first.num_registered_blocks = 1
    assert manager.match_prefix(sequence(list(range(10)))) == first.block_table[:1]
    manager.check([first])


def test_a_partial_last_block_is_never_shared() -> None:
    manager = BlockManager(8, 4)
    first = computed(manager, [1, 2, 3, 4, 5, 6, 7])
    assert manager.match_prefix(sequence([1, 2, 3, 4, 5, 6, 7])) == first.block_table[:1]


@pytest.mark.parametrize("length, hit", [(4, 0), (5, 1), (8, 1), (9, 2)])
def test_the_last_token_is_always_computed(length: int, hit: int) -> None:
    manager = BlockManager(8, 4)
    first = computed(manager, list(range(13)))
    twin = sequence(list(range(length)))
    assert manager.match_prefix(twin) == first.block_table[:hit]
    assert manager.admit(twin) and twin.num_computed_tokens == hit * 4 < length
    manager.check([first, twin])


def test_the_same_tokens_after_other_ones_are_another_block() -> None:
    manager = BlockManager(16, 4)
    computed(manager, [0, 0, 0, 0, 9, 9, 9, 9, 1])
    assert manager.match_prefix(sequence([9, 9, 9, 9, 1])) == []
    assert manager.match_prefix(sequence([1, 1, 1, 1, 9, 9, 9, 9, 1])) == []


def test_a_hash_collision_is_not_a_match(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = BlockManager(8, 4)
    monkeypatch.setattr(manager, "_chain_hash", lambda seq, index: b"same" + bytes([index]))
    first = computed(manager, [1, 2, 3, 4, 5])
    assert manager.match_prefix(sequence([1, 2, 3, 4, 7])) == first.block_table[:1]
    assert manager.match_prefix(sequence([1, 2, 3, 5, 7])) == []


def test_freed_blocks_are_found_until_they_are_taken_again() -> None:
    manager = BlockManager(4, 4)
    first = computed(manager, list(range(9)))
    blocks = list(first.block_table)
    manager.free(first)
    assert manager.num_free == 4
    again = sequence(list(range(9)))
    assert manager.match_prefix(again) == blocks[:2]
    assert manager.admit(again) and again.block_table[:2] == blocks[:2]
    manager.free(again)
    big = sequence(list(range(100, 116)))
    assert manager.admit(big)  # takes all four
    assert manager.match_prefix(sequence(list(range(9)))) == []
    manager.check([big])


def test_unregistered_blocks_are_taken_first_then_ends_of_the_oldest_prefix() -> None:
    manager = BlockManager(6, 2)
    old, new = computed(manager, [1, 1, 2, 2, 3]), computed(manager, [4, 4, 5, 5, 6])
    assert manager.num_free == 0
    manager.check([old, new])
    old_blocks, new_blocks = list(old.block_table), list(new.block_table)
    manager.free(old)
    manager.free(new)
    taken = sequence([70 + i for i in range(11)])
    assert manager.admit(taken)
    assert set(taken.block_table[:2]) == {old_blocks[2], new_blocks[2]}
    assert taken.block_table[2:] == [old_blocks[1], old_blocks[0], new_blocks[1], new_blocks[0]]


def test_shared_blocks_that_are_free_count_as_taken() -> None:
    manager = BlockManager(3, 2)
    manager.free(computed(manager, [1, 1, 2, 2, 3]))
    too_long = sequence([1, 1, 2, 2, 3, 3, 4])  # 4 blocks, 2 of them known, 3 in all
    assert not manager.admit(too_long) and too_long.block_table == [] and too_long.num_computed_tokens == 0
    manager.check([])
    fits = sequence([1, 1, 2, 2, 3, 3])
    assert manager.admit(fits) and fits.num_computed_tokens == 4 and manager.num_free == 0


def test_a_used_prefix_is_recent() -> None:
    manager = BlockManager(5, 2)
    manager.free(computed(manager, [1, 1, 9]))
    manager.free(computed(manager, [2, 2, 9]))
    manager.free(computed(manager, [1, 1, 9]))  # a hit: now the younger of the two
    filler = sequence([3, 4, 5, 6, 7, 8])
    assert manager.admit(filler)  # three never registered blocks
    more = sequence([5])
    assert manager.admit(more)
    assert manager.match_prefix(sequence([2, 2, 9])) == []
    assert len(manager.match_prefix(sequence([1, 1, 9]))) == 1


def test_twins_that_were_admitted_together_stay_separate() -> None:
    manager = BlockManager(8, 2)
    one, two = sequence([1, 1, 2, 2, 3]), sequence([1, 1, 2, 2, 3])
    assert manager.admit(one) and manager.admit(two)
    for seq in (one, two):
        manager.register(seq, 4)
        seq.num_computed_tokens = 4
        manager.keep_promises()
        manager.check([one, two])
    assert not set(one.block_table) & set(two.block_table)
    manager.free(one)
    manager.check([two])
    manager.free(two)
    manager.check([])
    assert manager.num_free == 8


def test_the_cache_can_be_off_and_prompt_logits_use_no_hits() -> None:
    off = BlockManager(8, 4, prefix_cache=False)
    computed(off, list(range(9)))
    assert off.match_prefix(sequence(list(range(9)))) == []
    on = BlockManager(8, 4)
    computed(on, list(range(9)))
    assert on.match_prefix(sequence(list(range(9)), want_prompt_logits=True)) == []


def test_check_finds_damage() -> None:
    manager = BlockManager(8, 4)
    seq = computed(manager, list(range(9)))
    with pytest.raises(AssertionError, match="references"):
        manager.check([])
    thief = sequence([1, 2])
    thief.block_table = [seq.block_table[0]]
    with pytest.raises(AssertionError):
        manager.check([seq, thief])
    seq.token_ids[0] = 99
    seq.block_hashes.clear()
    with pytest.raises(AssertionError, match="another prefix"):
        manager.check([seq])
