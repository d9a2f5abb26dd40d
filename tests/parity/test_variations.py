"""Configurations that no golden file has, against the plain implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kept_ranks import KeptRanks
from tests.parity.checks import check_plain
from tests.tiny import write_checkpoint

VARIATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "deepseek": {
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
    },
    "qwen": {
        "plain": {},
        "renormalised": {"norm_topk_prob": True},
        "one_expert_a_token": {"norm_topk_prob": True, "num_experts_per_tok": 1},
        "sparse_step": {"decoder_sparse_step": 2, "num_hidden_layers": 4},
        "sparse_step_and_dense_layers": {"decoder_sparse_step": 2, "mlp_only_layers": [0, 3], "num_hidden_layers": 6},
        "first_layer_dense": {"mlp_only_layers": [0]},
        "all_layers_dense": {"mlp_only_layers": [0, 1, 2]},
        "grouped_queries": {"num_key_value_heads": 2},
        "tied": {"tie_word_embeddings": True, "vocab_size": 259},
        "narrow_shared_expert": {"shared_expert_intermediate_size": 32},
        "linear_scaling": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "odd_widths": {"moe_intermediate_size": 27, "shared_expert_intermediate_size": 51, "vocab_size": 259},
    },
    "xverse": {
        "plain": {},
        "one_shared_expert": {"num_shared_experts": 1},
        "no_shared_experts": {"num_shared_experts": 0},
        "one_expert_a_token": {"moe_top_k": 1},
        "grouped_queries": {"num_key_value_heads": 2},
        "tied": {"tie_word_embeddings": True, "vocab_size": 259},
        "biases": {"attention_bias": True},
        "head_of_12": {"hidden_size": 96},
        "odd_widths": {"intermediate_size": 27, "vocab_size": 254, "num_experts": 7},
    },
    "llama": {
        "biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
        "wide_heads": {"head_dim": 16, "tie_word_embeddings": True, "vocab_size": 259, "intermediate_size": 51},
    },
    "mistral": {"grouped_queries": {"num_key_value_heads": 2, "sliding_window": 512}},
    "qwen2": {"grouped_queries": {"num_key_value_heads": 2}},
    "qwen3": {"biases": {"attention_bias": True, "num_key_value_heads": 1}},
    "qwen3_moe": {
        "not_renormalised": {"norm_topk_prob": False, "num_key_value_heads": 2},
        "dense_layers": {"mlp_only_layers": [0], "decoder_sparse_step": 2, "num_hidden_layers": 4, "head_dim": None},
    },
    "mixtral": {"odd_widths": {"intermediate_size": 27, "num_local_experts": 7, "num_key_value_heads": 2}},
    "olmoe": {
        "bounded": {"clip_qkv": 0.3, "num_key_value_heads": 1},
        "renormalised": {"norm_topk_prob": True, "attention_bias": True, "num_key_value_heads": 4},
    },
}
ALL = [(family, name) for family, names in VARIATIONS.items() for name in names]
ON_RANKS = [("deepseek", name) for name in ("biases", "grouped_queries", "one_kv_head", "tied", "odd_widths")]
ON_RANKS += [("qwen", "odd_widths"), ("xverse", "odd_widths"), ("llama", "biases"), ("olmoe", "bounded")]


@pytest.mark.parametrize(("family", "name"), ALL)
def test_one_rank(family: str, name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family=family, **VARIATIONS[family][name])
    check_plain(str(tmp_path))


@pytest.mark.parametrize(("family", "name"), ON_RANKS)
def test_two_ranks(family: str, name: str, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    check_on_ranks(kept_ranks, 2, tmp_path, family, VARIATIONS[family][name])


@pytest.mark.full
@pytest.mark.parametrize("tp", [3, 4, 7, 8])
@pytest.mark.parametrize(("family", "name"), ALL)
def test_more_ranks(family: str, name: str, tp: int, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    check_on_ranks(kept_ranks, tp, tmp_path, family, VARIATIONS[family][name])


@pytest.mark.parametrize(
    ("tp", "fields"),
    [
        (4, {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 112}),
        (3, {"num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 259, "moe_intermediate_size": 27}),
    ],
    ids=["14 heads on 4", "2 KV heads on 3"],
)
def test_zero_heads_beside_copies_of_kv_heads(
    tp: int, fields: dict[str, Any], tmp_path: Path, kept_ranks: KeptRanks
) -> None:
    check_on_ranks(kept_ranks, tp, tmp_path, "deepseek", {"attention_bias": True, **fields})


@pytest.mark.full
def test_sixteen_ranks(tmp_path: Path, kept_ranks: KeptRanks) -> None:
    fields = {"num_attention_heads": 16, "num_key_value_heads": 4, "hidden_size": 128}
    check_on_ranks(kept_ranks, 16, tmp_path, "deepseek", fields)


def check_on_ranks(ranks: KeptRanks, tp: int, folder: Path, family: str, fields: dict[str, Any]) -> None:
    write_checkpoint(folder, family=family, **fields)
    ranks.run("tests.parity.checks:check_plain", tp, str(folder))
