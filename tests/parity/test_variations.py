"""Configurations that no golden file has, against the plain implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import LLM, SamplingParams
from tests.parity.plain import plain_logits
from tests.tiny import DEEPSEEK, write_checkpoint

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all_layers_moe": {"first_k_dense_replace": 0},
    "every_second_layer": {"moe_layer_freq": 2, "num_hidden_layers": 4},
    "no_experts": {"n_routed_experts": None},
    "no_shared_experts": {"n_shared_experts": None},
    "one_shared_expert": {"n_shared_experts": 1},
    "renormalised": {"norm_topk_prob": True},
    "one_expert_a_token": {"norm_topk_prob": True, "num_experts_per_tok": 1},
    "biases": {"attention_bias": True},
    "grouped_queries": {"num_key_value_heads": 2},
    "one_kv_head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True, "vocab_size": 259},
    "theta_and_scaling": {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "odd_widths": {"moe_intermediate_size": 27, "intermediate_size": 51, "vocab_size": 259, "n_routed_experts": 7},
    "coarse_norm": {"rms_norm_eps": 1e-2},
}
ON_RANKS = ("biases", "grouped_queries", "one_kv_head", "tied", "odd_widths")


def check(folder: Path, fields: dict[str, Any], tp: int) -> None:
    """fp32 logits of a prompt in chunks, and the greedy continuation, as the plain implementation has them."""
    tensors = write_checkpoint(folder, **fields)
    config = {**DEEPSEEK, **fields}
    token_ids = torch.randint(3, 250, (37,), generator=torch.Generator().manual_seed(1)).tolist()
    with LLM(folder, dtype="fp32", device="cpu", tp=tp, block_size=16, max_prefill_tokens=20) as llm:
        ours = llm.prompt_logits(token_ids)
        (output,) = llm.generate([token_ids], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
    exact = plain_logits(config, tensors, token_ids + output.token_ids)
    assert (ours - exact[: len(token_ids)]).abs().max() <= 2e-4
    assert output.token_ids == exact[len(token_ids) - 1 : -1].argmax(dim=1).tolist()


@pytest.mark.parametrize("name", VARIATIONS)
def test_one_rank(name: str, tmp_path: Path) -> None:
    check(tmp_path, VARIATIONS[name], tp=1)


@pytest.mark.parametrize("name", ON_RANKS)
def test_two_ranks(name: str, tmp_path: Path) -> None:
    check(tmp_path, VARIATIONS[name], tp=2)


@pytest.mark.full
@pytest.mark.parametrize("tp", [4, 8])
@pytest.mark.parametrize("name", VARIATIONS)
def test_more_ranks(name: str, tp: int, tmp_path: Path) -> None:
    check(tmp_path, VARIATIONS[name], tp)


@pytest.mark.full
def test_sixteen_ranks(tmp_path: Path) -> None:
    check(tmp_path, {"num_attention_heads": 16, "num_key_value_heads": 4, "hidden_size": 128}, tp=16)
