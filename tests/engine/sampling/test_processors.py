"""Logits processors: each token accepted once, whatever happens to the sequence; no row changes another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Tokens
from typing import Any

import numpy as np
import pytest
import torch
from fake_runner import LOGITS, VOCAB, fake_engine, logits_of, states_of

from atb_models.engine.engine import Engine
from atb_models.engine.sampling import processors
from atb_models.engine.sampling.logit_bias import LogitBias
from atb_models.engine.sampling.penalties import Penalties
from atb_models.engine.sampling.processors import make_processors, process
from atb_models.engine.sampling.sampler import sample
from atb_models.engine.sequence import Sequence
from atb_models.errors import RequestError
from atb_models.sampling_params import SamplingParams

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1], [3, 1, 4, 1, 5, 9, 2, 7, 0, 1, 1], [5], list(range(30))]
SHAPES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.6, "logit_bias": {7: 3.5, 8: -2}},
    {"presence_penalty": 1.5},
    {"logit_bias": {5: 4.0, "30": 2.5}},
    {"frequency_penalty": -0.4},
    {},
]


def shaped(logits: torch.Tensor, prompt: list[int], output: list[int], shape: dict[str, Any]) -> np.ndarray:
    """Logits by the definition of every field, in their documented order, in float64."""
    x = logits.double().numpy().copy()
    for token in set(prompt) | set(output):
        repetition = shape.get("repetition_penalty", 1.0)
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token, count in Counter(output).items():
        x[token] -= shape.get("presence_penalty", 0.0) + count * shape.get("frequency_penalty", 0.0)
    for token, bias in shape.get("logit_bias", {}).items():
        x[int(token)] += bias
    return x


def expected(prompt: list[int], shape: dict[str, Any], count: int) -> list[int]:
    """The greedy answer by definition: no engine, no processors."""
    output: list[int] = []
    for _ in range(count):
        logits = logits_of(states_of(prompt + output))
        output.append(int(shaped(logits, prompt, output, shape).argmax()))
    return output


def requests() -> list[tuple[list[int], dict[str, Any]]]:
    return [(PROMPTS[i % len(PROMPTS)], SHAPES[i % len(SHAPES)]) for i in range(len(PROMPTS) * len(SHAPES))]


def answers(engine: Engine) -> list[list[int]]:
    """All of `requests`, and among them one that is aborted on the way."""
    seqs = [engine.add_request(prompt, SamplingParams(max_tokens=20, **shape)) for prompt, shape in requests()]
    victim = engine.add_request(PROMPTS[1], SamplingParams(max_tokens=40, repetition_penalty=1.4))
    while engine.has_work():
        engine.step()
        if len(victim.output_token_ids) == 3:
            engine.abort(victim.seq_id)
    return [seq.output_token_ids for seq in seqs]


@pytest.mark.parametrize(
    "options",
    [{"num_blocks": 400}, {"num_blocks": 14, "prefill": 5}, {"num_blocks": 14, "prefix_cache": False}],
    ids=str,
)
def test_answers_are_those_of_the_definition_with_and_without_preemption(options: dict[str, int]) -> None:
    engine = fake_engine(**options)
    got = answers(engine)
    assert (engine.metrics()["preemptions"] > 0) == (options["num_blocks"] == 14)
    assert got == [expected(prompt, shape, 20) for prompt, shape in requests()]
    for shape in SHAPES:
        pairs = [(one, prompt) for one, (prompt, other) in zip(got, requests(), strict=True) if other is shape]
        assert all(one == expected(prompt, {}, 20) for one, prompt in pairs) == (shape == {}), "it changes something"


class Rising:
    """A grammar in small: each token must be larger than the one before it, or 0; what comes first may be anything."""

    seen: list[list[int]] = []

    def __init__(self) -> None:
        self.tokens: list[int] = []
        Rising.seen.append(self.tokens)

    @classmethod
    def of(cls, params: SamplingParams, prompt_token_ids: Tokens[int]) -> Rising | None:
        return None if params.seed == 0 else cls()

    def accept(self, token: int) -> None:
        self.tokens.append(token)

    @classmethod
    def apply(cls, logits_BV: torch.Tensor, rows: Tokens[int], processors: Tokens[Rising]) -> None:
        lasts = [one.tokens[-1] if one.tokens else -1 for one in processors]
        masks = np.arange(logits_BV.shape[1]) <= np.array(lasts)[:, None]
        masks[:, 0] = False
        index = torch.tensor(rows)
        logits_BV[index] = logits_BV[index].masked_fill(torch.from_numpy(masks), -torch.inf)


@pytest.mark.parametrize("num_blocks", [400, 14])
def test_a_further_kind_plugs_in_and_accepts_each_token_once(monkeypatch: pytest.MonkeyPatch, num_blocks: int) -> None:
    monkeypatch.setattr(processors, "KINDS", (*processors.KINDS, Rising))
    monkeypatch.setattr(Rising, "seen", [])
    engine = fake_engine(num_blocks, prefill=5)
    params = [
        SamplingParams(max_tokens=20),
        SamplingParams(max_tokens=20, temperature=2.0, seed=5),
        SamplingParams(max_tokens=20, logit_bias={3: 100}),
        SamplingParams(max_tokens=20, seed=0),
    ]
    seqs = [engine.add_request(prompt, params[i % 4]) for i, prompt in enumerate(PROMPTS * 4)]
    while engine.has_work():
        engine.step()
    assert (engine.metrics()["preemptions"] > 0) == (num_blocks == 14)
    masked = [seq for seq in seqs if seq.params.seed != 0]
    assert [seq.output_token_ids for seq in masked] == Rising.seen
    for seq in seqs:
        output = seq.output_token_ids
        rises = all(later > before or later == 0 for before, later in zip(output, output[1:], strict=False))
        assert rises == (seq in masked), "the last kind has the last word, and only where it was asked for"


def test_a_token_that_is_dropped_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "KINDS", (Rising,))
    monkeypatch.setattr(Rising, "seen", [])
    engine = fake_engine()
    seq = engine.add_request(PROMPTS[0], SamplingParams(max_tokens=9))
    engine.step()
    engine.on_step = lambda *_: engine.abort(seq.seq_id) and None
    engine.step()
    assert len(seq.output_token_ids) == 1 and Rising.seen == [seq.output_token_ids]


def random_rows(count: int) -> tuple[torch.Tensor, list[Sequence], list[list[int]]]:
    generator = np.random.default_rng(4)
    logits = LOGITS[torch.from_numpy(generator.integers(len(LOGITS), size=count))]
    outputs = [generator.integers(VOCAB, size=size).tolist() for size in generator.integers(0, 60, count)]
    seqs = [
        Sequence(PROMPTS[i % len(PROMPTS)], SamplingParams(**SHAPES[i % len(SHAPES)]).resolve({})) for i in range(count)
    ]
    for seq, output in zip(seqs, outputs, strict=True):
        for token in output:
            seq.append(token)
    return logits, seqs, outputs


def test_a_row_depends_on_itself_alone() -> None:
    logits, seqs, outputs = random_rows(41)
    before = logits.clone()
    together = process(logits, [seq.processors for seq in seqs])
    assert torch.equal(logits, before), "the raw logits are those of log-probabilities and hooks"
    for row, seq in enumerate(seqs):
        assert torch.equal(together[row], process(logits[row : row + 1], [seq.processors])[0])
        if not seq.processors:
            assert torch.equal(together[row], logits[row])
        want = shaped(logits[row], seq.prompt_token_ids, outputs[row], SHAPES[row % len(SHAPES)])
        assert np.abs(together[row].double().numpy() - want).max() < 1e-5
    order = np.random.default_rng(5).permutation(len(seqs)).tolist()
    assert torch.equal(process(logits[order], [seqs[row].processors for row in order]), together[order])


def test_rows_without_processors_cost_no_copy() -> None:
    logits, seqs, _ = random_rows(6)
    assert process(logits, [()] * 6) is logits
    assert [type(one) for one in seqs[1].processors] == [Penalties, LogitBias] and seqs[5].processors == ()
    assert make_processors(SamplingParams(repetition_penalty=1.0, presence_penalty=0), [1]) == ()


def test_logits_of_any_layout_are_taken() -> None:
    logits, seqs, _ = random_rows(12)
    turned = logits.T.contiguous().T
    assert not turned.is_contiguous() and sample(turned, seqs) == sample(logits, seqs)


def test_bias_beyond_the_vocabulary_is_refused_where_it_is_known() -> None:
    engine = fake_engine()
    for ids in ({VOCAB: 1.0}, {str(VOCAB): 1.0}):
        with pytest.raises(RequestError, match=f"logit_bias has token id {VOCAB}; ids go from 0 to {VOCAB - 1}"):
            engine.add_request([1], SamplingParams(logit_bias=ids))
    assert not engine.has_work()
    engine.add_request([1], SamplingParams(max_tokens=1, logit_bias={VOCAB - 1: 100}))
    assert engine.step()[0].token_ids == [VOCAB - 1]
