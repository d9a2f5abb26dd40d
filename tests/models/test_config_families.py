"""What each family's config.json means beyond the fields that all have in common."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from atb_models.errors import ConfigError
from atb_models.graph import meta_model
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config

# Of the published checkpoints: all parameters, and those that one token meets, embedding and head included.
PUBLISHED = {
    "deepseek-moe-16b-base": (16_375_728_128, 2_828_650_496),
    "qwen1.5-moe-a2.7b-chat": (14_315_784_192, 2_689_173_504),
    "xverse-moe-a4.2b": (25_778_352_640, 4_226_183_680),
}


def load(folder: Path, family: str, remove: tuple[str, ...] = (), **fields: Any) -> ModelConfig:
    config = {name: value for name, value in {**tiny.FAMILIES[family], **fields}.items() if name not in remove}
    (folder / "config.json").write_text(json.dumps(config))
    return load_model_config(folder)


def test_qwen(tmp_path: Path) -> None:
    config = load(tmp_path, "qwen")
    assert (config.qkv_bias, config.o_bias, config.shared_expert_gate) == (True, False, True)
    assert (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size) == (9, 4, 32)
    assert (config.intermediate_size, config.shared_intermediate_size) == (96, 80)
    assert (config.norm_topk_prob, config.moe_layers) == (False, (True, True, True))
    assert load(tmp_path, "qwen", norm_topk_prob=True).norm_topk_prob
    assert not load(tmp_path, "qwen", qkv_bias=False).qkv_bias


def test_layers_of_qwen_that_have_experts(tmp_path: Path) -> None:
    sparse = {"decoder_sparse_step": 2, "num_hidden_layers": 6}
    assert load(tmp_path, "qwen", **sparse).moe_layers == (False, True, False, True, False, True)
    mixed = load(tmp_path, "qwen", **sparse, mlp_only_layers=[0, 3, 40])
    assert mixed.moe_layers == (False, True, False, False, False, True)
    assert load(tmp_path, "qwen", mlp_only_layers=[0]).moe_layers == (False, True, True)
    absent = load(tmp_path, "qwen", ("mlp_only_layers", "decoder_sparse_step", "norm_topk_prob"))
    assert absent.moe_layers == (True, True, True) and not absent.norm_topk_prob


@pytest.mark.parametrize("layers", ["0", [0.5], [True], [-1], 3])
def test_mlp_only_layers_of_another_type(tmp_path: Path, layers: Any) -> None:
    with pytest.raises(ConfigError, match="mlp_only_layers is .* must be a list of integers of at least 0"):
        load(tmp_path, "qwen", mlp_only_layers=layers)


def test_sliding_window_of_qwen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load(tmp_path, "qwen", sliding_window=32768)
    assert "without effect here: " in caplog.text and "max_window_layers, sliding_window" in caplog.text
    with pytest.raises(ConfigError, match="use_sliding_window is True, but only False is supported"):
        load(tmp_path, "qwen", use_sliding_window=True)
    caplog.clear()
    load(tmp_path, "qwen", layer_types=["full_attention"] * 3)  # as newer files say the same
    assert "unknown" not in caplog.text
    for kinds in (["full_attention", "sliding_attention"], "full_attention"):
        with pytest.raises(ConfigError, match="layer_types is .* but only full_attention is supported, in every layer"):
            load(tmp_path, "qwen", layer_types=kinds)


def test_xverse(tmp_path: Path) -> None:
    config = load(tmp_path, "xverse", ("num_key_value_heads", "attention_bias"))
    assert config.moe_layers == (True, True, True) and config.num_key_value_heads == 8
    assert (config.qkv_bias, config.o_bias, config.shared_expert_gate) == (False, False, False)
    assert (config.num_experts, config.num_experts_per_tok) == (8, 3)
    assert (config.moe_intermediate_size, config.shared_intermediate_size) == (32, 64)
    assert (config.norm_topk_prob, config.norm_topk_eps) == (True, 1e-6)
    assert load(tmp_path, "xverse", ("num_shared_experts",)).shared_intermediate_size == 0


@pytest.mark.parametrize("fields", [{"num_experts": None}, {"num_experts": 0}])
def test_dense_xverse_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="num_experts is .* dense XVERSE model, but only XVERSE-MoE is supported"):
        load(tmp_path, "xverse", **fields)
    with pytest.raises(ConfigError, match="dense XVERSE model"):
        load(tmp_path, "xverse", ("num_experts",))


@pytest.mark.parametrize(
    ("family", "field"),
    [("qwen", "num_experts"), ("qwen", "shared_expert_intermediate_size"), ("xverse", "moe_top_k")],
)
def test_fields_that_a_family_needs(tmp_path: Path, family: str, field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is missing"):
        load(tmp_path, family, (field,))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_published_models(name: str, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_model_config(shared / "headers" / name)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    sizes = {key: p.numel() for key, p in meta_model(config, torch.bfloat16).named_parameters()}
    experts = sum(size for key, size in sizes.items() if ".experts." in key)
    idle = experts // config.num_experts * (config.num_experts - config.num_experts_per_tok)
    assert (sum(sizes.values()), sum(sizes.values()) - idle) == PUBLISHED[name]
    index = shared / "headers" / name / "model.safetensors.index.json"
    if index.exists():
        assert 2 * sum(sizes.values()) == json.loads(index.read_text())["metadata"]["total_size"]
