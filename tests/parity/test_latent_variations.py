"""Configurations of latent attention that no golden file has, against the plain implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.kept_ranks import KeptRanks
from tests.parity.checks import check_plain
from tests.tiny_latent import write_latent

GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
VARIATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "deepseek_v2": {
        "plain": {},
        "low_rank_queries": {"q_lora_rank": 24},
        "groups": {**GROUPS, "routed_scaling_factor": 16.0},
        "renormalised_and_not_scaled": {**GROUPS, "norm_topk_prob": True, "routed_scaling_factor": 16.0},
        "one_expert_is_scaled": {"norm_topk_prob": True, "num_experts_per_tok": 1, "routed_scaling_factor": 3.0},
        "groups_that_do_not_limit": {"n_group": 4, "topk_group": 2},
        "biases": {"attention_bias": True, "q_lora_rank": 24},
        "no_scaling": {"rope_scaling": None},
        "linear_scaling": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "magnitudes_that_differ": {
            "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "mscale": 1.0}
        },
        "every_second_layer": {"moe_layer_freq": 2, "num_hidden_layers": 4},
        "five_heads": {"num_attention_heads": 5, "num_key_value_heads": 5},
        "odd_widths": {"kv_lora_rank": 33, "qk_nope_head_dim": 7, "qk_rope_head_dim": 6, "v_head_dim": 9},
        "coarse_norm": {"rms_norm_eps": 1e-2, "q_lora_rank": 24},
        "tied": {"tie_word_embeddings": True, "vocab_size": 259},
    },
    "deepseek_v3": {
        "plain": {},
        "without_groups": {"n_group": 1, "topk_group": 1},
        "not_renormalised": {"norm_topk_prob": False},
        "queries_of_the_hidden_state": {"q_lora_rank": None},
        "layers_of_further_tokens": {"num_nextn_predict_layers": 1},
        "five_heads": {"num_attention_heads": 5, "num_key_value_heads": 5},
    },
}
ALL = [(family, name) for family, names in VARIATIONS.items() for name in names]
# Whose mathematics no other that the default suite runs has; the others are of a width, a sum or a table alone.
DEFAULT = {
    "low_rank_queries", "renormalised_and_not_scaled", "one_expert_is_scaled", "groups", "biases", "odd_widths",
    "magnitudes_that_differ", "coarse_norm", "without_groups", "not_renormalised", "layers_of_further_tokens",
    "five_heads",
}  # fmt: skip
ONE_RANK = [pytest.param(*one, marks=[] if one[1] in DEFAULT else [pytest.mark.full]) for one in ALL]
ON_RANKS = [("deepseek_v2", "five_heads", 3), ("deepseek_v2", "biases", 2), ("deepseek_v3", "plain", 3)]


@pytest.mark.parametrize(("family", "name"), ONE_RANK)
def test_one_rank(family: str, name: str, tmp_path: Path) -> None:
    write_latent(tmp_path, family, **VARIATIONS[family][name])
    check_plain(str(tmp_path))


@pytest.mark.parametrize(("family", "name", "tp"), ON_RANKS)
def test_ranks(family: str, name: str, tp: int, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    write_latent(tmp_path, family, **VARIATIONS[family][name])
    kept_ranks.run("tests.parity.checks:check_plain", tp, str(tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("tp", [3, 4, 8])
@pytest.mark.parametrize(("family", "name"), ALL)
def test_more_ranks(family: str, name: str, tp: int, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    test_ranks(family, name, tp, tmp_path, kept_ranks)
