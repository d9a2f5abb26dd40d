"""Thousands of steps of random arrivals, aborts and shared prefixes over pools that are too small."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from fake_runner import LOGITS, VOCAB, alone, fake_engine, states_of

from atb_models.engine.scheduler import Row
from atb_models.engine.sequence import Sequence, Status
from atb_models.outputs import RequestOutput
from atb_models.sampling_params import SamplingParams

STEPS = 600
LOGPROBS = LOGITS.log_softmax(-1)


class Traffic:
    """Random requests; what each must answer is known beforehand."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.block_size = rng.choice([1, 2, 3, 4])
        self.prefill, self.batch = rng.choice([1, 3, 8, 30]), rng.choice([1, 3, 6])
        self.max_seq_len = 44
        num_blocks = -(-self.max_seq_len // self.block_size) + rng.choice([0, 1, 5])
        self.eos = rng.sample(range(VOCAB), 2)
        self.engine = fake_engine(
            num_blocks,
            self.block_size,
            prefix_cache=seed % 4 != 3,
            batch=self.batch,
            prefill=self.prefill,
            max_seq_len=self.max_seq_len,
            prompt_logits=rng.choice([1, 4, 64]),
            eos_token_ids=self.eos,
            look=self.look,
        )
        self.prefixes = [[rng.randrange(VOCAB) for _ in range(24)] for _ in range(3)]
        self.seqs: dict[int, Sequence] = {}
        self.want: dict[int, list[int]] = {}
        self.aborted_in: Counter[Status] = Counter()

    def add(self) -> None:
        rng = self.rng
        prompt = rng.choice(self.prefixes)[: rng.randint(1, 24)] + rng.choices(range(VOCAB), k=rng.randint(0, 6))
        max_tokens = rng.choice([None, 1, 5, 12, 30])
        index = len(self.seqs)
        params = SamplingParams(
            max_tokens=max_tokens, ignore_eos=rng.random() < 0.3, prompt_logprobs=rng.choice([None, None, 0])
        )
        self.seqs[index] = self.engine.add_request(prompt, params, index=index, stream=rng.random() < 0.2)
        length = min(self.max_seq_len - len(prompt), max_tokens or self.max_seq_len)
        self.want[index] = alone(prompt, length, () if params.ignore_eos else self.eos)

    def abort(self) -> None:
        scheduler = self.engine.scheduler
        groups = [list(group) for group in (scheduler.running, scheduler.waiting) if group]
        if groups:
            seq = self.rng.choice(self.rng.choice(groups))
            state = seq.status
            output = self.engine.abort(seq.seq_id)
            assert output is not None and output.token_ids == self.want[seq.index][: len(output.token_ids)]
            self.aborted_in[state] += 1

    def look(self, rows: list[Row]) -> None:
        """The promises about a single step."""
        scheduler = self.engine.scheduler
        chunks = [row.num_tokens for row in rows if row.is_prefill]
        assert sum(chunks) <= self.prefill and len(rows) <= self.batch
        assert all(row.num_tokens == 1 and row.completes for row in rows if not row.is_prefill)
        decodes, prefills = len(rows) - len(chunks), [row.is_prefill for row in rows]
        assert prefills == [False] * decodes + [True] * len(chunks)
        assert any(row.seq is scheduler.running[0] for row in rows), "the oldest does not advance"
        assert all(row.seq.status is not Status.FINISHED for row in rows)
        for part in (rows[:decodes], rows[decodes:]):
            ids = [row.seq.seq_id for row in part]
            assert ids == sorted(ids)

    def check(self, outputs: list[RequestOutput]) -> None:
        self.engine.scheduler.check()
        for output in outputs:
            want = self.want[output.index]
            if output.finish_reason is None:
                assert self.seqs[output.index].stream and output.token_ids == want[: len(output.token_ids)]
            else:
                assert output.token_ids == want, f"request {output.index}"
                assert output.finish_reason == ("stop" if self._hit_eos(output) else "length")
                self._check_prompt(output)

    def _check_prompt(self, output: RequestOutput) -> None:
        prompt, known = output.prompt_token_ids, output.prompt_logprobs
        if self.seqs[output.index].params.prompt_logprobs is None:
            assert known is None
            return
        states = states_of(prompt)
        places = [LOGPROBS[hash(tuple(states[:i])) % len(LOGITS)] for i in range(1, len(prompt))]
        want = [{token: float(place[token])} for place, token in zip(places, prompt[1:], strict=True)]
        assert known == [None, *(pytest.approx(one) for one in want)], f"request {output.index}"

    def _hit_eos(self, output: RequestOutput) -> bool:
        return not self.seqs[output.index].params.ignore_eos and output.token_ids[-1] in self.eos


@pytest.mark.parametrize("seed", range(8))
def test_random_traffic(seed: int) -> None:
    traffic = Traffic(seed)
    engine, rng = traffic.engine, traffic.rng
    for _ in range(STEPS):
        while rng.random() < 0.25 and len(engine.scheduler.waiting) < 12:
            traffic.add()
        if rng.random() < 0.03:
            traffic.abort()
            engine.scheduler.check()
        traffic.check(engine.step())
    limit = STEPS * 20
    while engine.has_work():
        traffic.check(engine.step())
        limit -= 1
        assert limit, "requests starve"
    finished = Counter(seq.finish_reason for seq in traffic.seqs.values())
    assert set(finished) == {"stop", "length", "abort"} and finished["stop"] + finished["length"] > 20
    assert all(seq.status is Status.FINISHED and seq.block_table == [] for seq in traffic.seqs.values())
    blocks = engine.scheduler.block_manager
    assert blocks.num_free == blocks.num_blocks
    metrics = engine.metrics()
    assert metrics["preemptions"] > 0 or traffic.batch == 1
    assert (metrics["prefix_hit_tokens"] > 0) == blocks.prefix_cache
    assert traffic.aborted_in[Status.WAITING] and len(traffic.aborted_in) > 1
