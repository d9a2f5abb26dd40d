"""What config.json of DeepSeek-V2 and V3 says, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import ConfigError
from atb_models.layers.latent_sizes import LatentSizes
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import gating
from atb_models.ops.gating import Gating
from tests.tiny import FAMILIES
from tests.tiny_latent import LATENT

YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


def load(folder: Path, family: str, without: tuple[str, ...] = (), **fields: Any) -> ModelConfig:
    config = {name: value for name, value in {**LATENT[family], **fields}.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_config(folder)


def test_absent_fields_are_the_published_classs(tmp_path: Path) -> None:
    sizes = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    config = load(tmp_path, "deepseek_v2", (*sizes, "topk_method", "routed_scaling_factor", "first_k_dense_replace"))
    assert config.latent == LatentSizes(1536, 512, 128, 64, 128)
    assert config.moe_layers == (True,) * 3 and config.router_score == "softmax"
    assert gating(config) == Gating(3) and (config.head_dim, config.rope.width) == (192, 64)
    groups, experts = ("n_group", "topk_group", "topk_method"), ("n_shared_experts", "norm_topk_prob", "scoring_func")
    layers = ("first_k_dense_replace", "moe_layer_freq", "num_nextn_predict_layers")
    absent = (*groups, *experts, *layers, "routed_scaling_factor")
    config = load(tmp_path, "deepseek_v3", absent, num_hidden_layers=5, n_routed_experts=16)
    assert config.moe_layers == (False,) * 3 + (True,) * 2 and config.router_bias
    assert gating(config) == Gating(3, "sigmoid", 8, 4, "top2", 1e-20, 2.5)
    assert config.shared_intermediate_size == 32


def test_null_means_that_queries_have_no_low_rank(tmp_path: Path) -> None:
    for family in LATENT:
        config = load(tmp_path, family, q_lora_rank=None)
        assert config.latent is not None and config.latent.q_rank is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Gating(3)),
        ({"routed_scaling_factor": 16.0}, Gating(3, scaling=16.0)),
        ({"norm_topk_prob": True, "routed_scaling_factor": 16.0}, Gating(3, renormalize_eps=1e-20)),
        ({"norm_topk_prob": True, "num_experts_per_tok": 1, "routed_scaling_factor": 2.0}, Gating(1, scaling=2.0)),
        ({"n_group": 4, "topk_group": 2}, Gating(3)),  # greedy knows no groups
        ({"n_group": None, "topk_group": None}, Gating(3)),
        (
            {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
            Gating(3, groups=4, top_groups=2),
        ),
    ],
)
def test_gating_of_v2(tmp_path: Path, fields: dict[str, Any], expected: Gating) -> None:
    assert gating(load(tmp_path, "deepseek_v2", **fields)) == expected


def test_heads_and_caches_are_not_what_plain_attention_would_have(tmp_path: Path) -> None:
    config = load(tmp_path, "deepseek_v2", head_dim=8, num_key_value_heads=2, num_attention_heads=5, qk_head_dim=20)
    assert (config.num_key_value_heads, config.head_dim) == (5, 20)
    load(tmp_path, "deepseek_v3", ep_size=1, seq_aux=True, aux_loss_alpha=0.001, rope_interleave=True)


def test_layers_of_further_tokens_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert load(tmp_path, "deepseek_v3", num_nextn_predict_layers=1).extra_layers == 1
    assert caplog.text.count("1 layer that would predict further tokens left out") == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load(tmp_path, "deepseek_v3")
    assert "further tokens" not in caplog.text


@pytest.mark.parametrize(
    ("family", "fields", "problem"),
    [
        ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid', but only 'softmax'"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc', but only 'greedy'"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": None}, "n_group is null"),
        ("deepseek_v2", {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers is 1"),
        ("deepseek_v2", {"qk_rope_head_dim": 7}, "a head has 7 values to turn"),
        ("deepseek_v2", {"kv_lora_rank": 0}, "kv_lora_rank is 0, but must be an integer of at least 1"),
        ("deepseek_v2", {"v_head_dim": 1 << 20}, "v_head_dim is 1048576"),
        ("deepseek_v2", {"qk_head_dim": 21}, "qk_head_dim is 21, but only 20"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax', but only 'sigmoid'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy', but only 'noaux_tc'"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave is False, but only True"),
        ("deepseek_v3", {"n_routed_experts": None}, "n_routed_experts is null"),
        ("deepseek_v3", {"n_group": 3}, "3 groups are not equal"),
        ("deepseek", {"kv_lora_rank": 512}, "kv_lora_rank is 512"),
    ],
)
def test_refused(tmp_path: Path, family: str, fields: dict[str, Any], problem: str) -> None:
    config = {**(LATENT | FAMILIES)[family], **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=problem):
        load_model_config(tmp_path)


def test_the_scale_of_scores_has_yarns_magnitude(tmp_path: Path) -> None:
    """0.1 * mscale_all_dim * ln(40) + 1, squared; without mscale_all_dim 1, as the published code has it."""
    whole = load(tmp_path, "deepseek_v2", rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707})
    assert whole.rope.score_factor == pytest.approx(1.2608037**2) and whole.rope.table_factor == 1
    without = load(tmp_path, "deepseek_v2", rope_scaling=YARN)
    assert without.rope.score_factor == 1 and without.rope.table_factor == pytest.approx(1.3688879)
