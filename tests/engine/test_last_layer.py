"""After the last attention only the tokens whose logits are wanted are computed."""

from __future__ import annotations

import pytest
import torch

from atb_models import LLM, SamplingParams
from atb_models.layers.mlp import MoE

PROMPT = list(range(100, 140))


@pytest.mark.parametrize("isa", ["", "reference"])
def test_the_last_feed_forward_takes_the_wanted_tokens_alone(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    """A chunk that does not end its prompt wants none; a scored prompt wants all. Results are the same."""
    if isa:
        monkeypatch.setenv("ATB_CPU_ISA", isa)
    greedy = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True, logprobs=5)
    with LLM(dtype="fp32", device="cpu", prefix_cache=False, max_prefill_tokens=16, max_batch_size=2) as llm:
        model = llm._runner.model
        experts = [layer.mlp for layer in model.layers if isinstance(layer.mlp, MoE)]
        counters = [moe.count_tokens() for moe in experts]
        (answer,) = llm.generate([PROMPT], greedy)
        chosen = [int(counter.sum()) // moe.gating.top_k for counter, moe in zip(counters, experts, strict=True)]
        assert chosen == [len(PROMPT) + 1] * (len(chosen) - 1) + [2]
        logits = llm.prompt_logits([*PROMPT, answer.token_ids[0]])
        assert int(counters[-1].sum()) // experts[-1].gating.top_k == 2 + len(PROMPT) + 1
    assert answer.logprobs is not None
    for found, row in zip(answer.logprobs, logits[-2:].log_softmax(-1), strict=True):
        for token, value in found.items():
            torch.testing.assert_close(float(row[token]), value, rtol=0, atol=1e-5)
