"""Who computes what in which step."""

from __future__ import annotations

import pytest

from atb_models.engine.block_manager import BlockManager
from atb_models.engine.scheduler import Row, Scheduler
from atb_models.engine.sequence import Sequence, Status
from atb_models.errors import CapacityError, RequestError
from atb_models.limits import Limits
from atb_models.sampling_params import SamplingParams


def scheduler(
    blocks: int = 32,
    size: int = 4,
    *,
    batch: int = 8,
    prefill: int = 16,
    max_seq_len: int = 100,
    prompt_logits: int = 16,
) -> Scheduler:
    return Scheduler(BlockManager(blocks, size), Limits(batch, prefill, max_seq_len, size, prompt_logits))


_next_token = iter(range(10_000))


def add(target: Scheduler, length: int, max_tokens: int | None = 50, **options: bool) -> Sequence:
    """A request with a prompt like no other."""
    prompt = [next(_next_token) for _ in range(length)]
    seq = Sequence(prompt, SamplingParams(max_tokens=max_tokens).resolve({}), **options)
    target.add(seq)
    return seq


def step(target: Scheduler) -> list[tuple[Sequence, int]]:
    rows = target.schedule()
    plan = [(row.seq, row.num_tokens) for row in rows]
    target.postprocess(rows, [next(_next_token) for row in rows if row.completes])
    for seq, _ in plan:
        if len(seq.token_ids) == seq.max_len:
            target.finish(seq, "length")
    target.check()
    return plan


def test_chunks_of_several_prompts_share_the_budget() -> None:
    target = scheduler(prefill=16)
    a, b, c = add(target, 10), add(target, 20), add(target, 3)
    assert step(target) == [(a, 10), (b, 6)]
    assert step(target) == [(a, 1), (b, 14), (c, 2)]
    assert step(target) == [(a, 1), (b, 1), (c, 1)]
    assert target.num_chunks == 5
    assert step(target) == [(a, 1), (b, 1), (c, 1)]
    assert target.num_chunks == 5


def test_decode_rows_do_not_use_the_prefill_budget() -> None:
    target = scheduler(prefill=2, batch=8)
    first = [add(target, 1) for _ in range(4)]
    assert step(target) == [(first[0], 1), (first[1], 1)]
    assert step(target) == [(first[0], 1), (first[1], 1), (first[2], 1), (first[3], 1)]
    late = add(target, 4)
    assert step(target) == [*((seq, 1) for seq in first), (late, 2)]


def test_rows_tell_which_logits_are_wanted() -> None:
    target = scheduler(prefill=6)
    plain, whole = add(target, 4), add(target, 5, want_prompt_logits=True)
    rows = target.schedule()
    assert [(row.num_tokens, row.completes, row.num_logits, row.is_prefill) for row in rows] == [
        (4, True, 1, True),
        (2, False, 2, True),
    ]
    target.postprocess(rows, [7])
    rows = target.schedule()
    assert [(row.seq, row.completes, row.num_logits, row.is_prefill) for row in rows] == [
        (plain, True, 1, False),
        (whole, True, 3, True),
    ]
    assert Row(plain, 1, False).num_logits == 0


def test_prompt_logits_have_a_budget_of_their_own() -> None:
    target = scheduler(prefill=16, prompt_logits=5)
    a, b = add(target, 7, want_prompt_logits=True), add(target, 4, want_prompt_logits=True)
    plain = add(target, 3)
    assert step(target) == [(a, 5), (plain, 3)]
    assert b.status is Status.PREFILL and b.num_computed_tokens == 0
    assert step(target) == [(plain, 1), (a, 2), (b, 3)]
    assert step(target) == [(plain, 1), (b, 1)]
    assert target.num_chunks == 5


def test_places_are_limited_and_filled_in_order() -> None:
    target = scheduler(batch=2)
    a, b, c, d = (add(target, 3) for _ in range(4))
    assert step(target) == [(a, 3), (b, 3)]
    assert step(target) == [(a, 1), (b, 1)]
    target.finish(a, "length")
    assert step(target) == [(b, 1), (c, 3)]
    assert list(target.waiting) == [d] and a.finish_reason == "length" and a.block_table == []


def test_a_long_head_is_not_overtaken() -> None:
    target = scheduler(blocks=4, prefill=100)
    a, long, short = add(target, 7, 5), add(target, 11, 2), add(target, 2, 2)
    assert step(target) == [(a, 7)]
    assert step(target) == [(a, 1)]
    assert list(target.waiting) == [long, short]
    target.finish(a, "length")
    assert step(target) == [(long, 11), (short, 2)]


def test_the_newest_gives_way_and_is_first_in_the_queue() -> None:
    target = scheduler(blocks=4, size=4, prefill=100)
    a, b = add(target, 7, 9), add(target, 7, 9)
    late = add(target, 2, 2)
    assert step(target) == [(a, 7), (b, 7)]
    assert step(target) == [(a, 1), (b, 1)]  # both have 9 tokens in 2 blocks of 4 now
    assert step(target) == [(a, 1)]
    assert b.status is Status.WAITING and b.block_table == [] and b.num_preemptions == target.num_preemptions == 1
    assert list(target.waiting) == [b, late]
    while a.status is not Status.FINISHED:
        assert step(target) == [(a, 1)]
    known = len(b.token_ids)
    rows = target.schedule()  # prompt and output so far, less the blocks the cache still has
    assert rows[0].seq is b and rows[0].completes and rows[0].is_prefill
    assert rows[0].num_tokens + b.num_computed_tokens == known == 9 and b.num_cached_tokens == 0


def test_the_newest_gives_way_even_if_it_is_the_one_in_need() -> None:
    target = scheduler(blocks=4, size=4, prefill=100)
    a, b = add(target, 5, 9), add(target, 8, 6)
    assert step(target) == [(a, 5), (b, 8)]
    assert step(target) == [(a, 1)]
    assert b.status is Status.WAITING and a.num_preemptions == 0


def test_preempted_tokens_are_recomputed_in_chunks() -> None:
    target = scheduler(blocks=4, size=4, prefill=3)
    target.block_manager.prefix_cache = False
    a, b = add(target, 3, 12), add(target, 3, 12)
    while not b.num_preemptions:
        step(target)
    target.abort(a.seq_id)
    known = len(b.token_ids)
    chunks = [step(target) for _ in range(-(-known // 3))]
    assert known > 6 and all(plan[0] == (b, min(3, known - 3 * i)) for i, plan in enumerate(chunks))
    assert b.status is Status.DECODE and len(b.token_ids) == known + 1


def test_a_prefix_hit_saves_budget() -> None:
    target = scheduler(prefill=100)
    a = add(target, 9)
    step(target)
    twin = Sequence(a.token_ids[:9], a.params)
    target.add(twin)
    assert step(target) == [(a, 1), (twin, 1)]
    assert twin.num_cached_tokens == target.num_prefix_hit_tokens == 8


@pytest.mark.parametrize("state", ["waiting", "chunked", "decode", "preempted"])
def test_abort_in_every_state(state: str) -> None:
    target = scheduler(blocks=4, size=4, prefill=4 if state == "chunked" else 100)
    a = add(target, 7, 9)
    b = add(target, 7, 9)
    if state != "waiting":
        step(target)
    if state in ("decode", "preempted"):
        step(target)
    if state == "preempted":
        step(target)
        assert b.num_preemptions == 1
    victim = a if state == "chunked" else b
    assert target.abort(victim.seq_id) is victim and victim.finish_reason == "abort"
    target.check()
    assert target.abort(victim.seq_id) is None and target.abort(10**9) is None
    other = b if victim is a else a
    assert step(target) and other.status is not Status.FINISHED
    target.abort(other.seq_id)
    assert not target.has_work() and target.schedule() == [] and target.block_manager.num_free == 4


def test_an_abort_while_the_step_runs_drops_its_token() -> None:
    target = scheduler()
    a, b = add(target, 3), add(target, 3)
    rows = target.schedule()
    target.abort(a.seq_id)
    target.postprocess(rows, [77, 88])
    target.check()
    assert len(a.token_ids) == 3 and b.token_ids[-1] == 88


def test_length_limits() -> None:
    target = scheduler(blocks=10, size=4, max_seq_len=20)
    assert add(target, 5, 7).max_len == 12
    assert add(target, 5, 100).max_len == 20
    assert add(target, 5, None).max_len == 20
    assert add(target, 19, 5).max_len == 20
    assert add(target, 20, 1, want_prompt_logits=True).max_len == 21
    with pytest.raises(RequestError, match=r"20 tokens.* max_seq_len 20 leaves room for 19; shorten"):
        add(target, 20)
    with pytest.raises(RequestError, match="21 tokens"):
        add(target, 21, 1, want_prompt_logits=True)
    assert len(target.waiting) == 5


def test_a_request_beyond_the_pool_is_refused_unless_its_length_is_open() -> None:
    target = scheduler(blocks=2, size=4, max_seq_len=100)
    assert add(target, 5, 4).max_len == 9  # the ninth token is never computed: 8 slots do
    assert add(target, 5, None).max_len == 9
    assert add(target, 8, None).max_len == 9
    with pytest.raises(
        CapacityError, match=r"needs 3 KV blocks of 4 tokens \(5 prompt \+ up to 5 new.* are 2 in all.*lower"
    ):
        add(target, 5, 5)
    with pytest.raises(CapacityError, match="9 prompt"):
        add(target, 9, None)


@pytest.mark.parametrize("prompt", [[], ["a"], [1.5], [None]])
def test_a_prompt_is_a_list_of_ids(prompt: list) -> None:
    with pytest.raises(RequestError, match="prompt"):
        Sequence(prompt, SamplingParams())
