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
    config = {**(tiny.FAMILIES | tiny.LATER)[family], **fields}
    config = {name: value for name, value in config.items() if name not in remove}
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


def test_llama(tmp_path: Path) -> None:
    config = load(tmp_path, "llama", ("num_key_value_heads", "attention_bias", "mlp_bias"))
    assert (config.num_key_value_heads, config.head_dim, config.num_experts) == (8, 8, 0)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm) == (False, False, False, None)
    assert config.moe_layers == (False, False, False)
    biased = load(tmp_path, "llama", attention_bias=True, mlp_bias=True, head_dim=32)
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, True)
    assert (biased.head_dim, biased.rope.width) == (32, 32)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_a_sliding_window_that_hides_a_position_is_refused(tmp_path: Path, family: str) -> None:
    for window in (None, 512, 4096):  # a text has 512 positions at most
        load(tmp_path, family, sliding_window=window)
    said = r"config.json: sliding_window is 511, but .* up to 511 tokens .* '{\"max_position_embeddings\": 511}'"
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, family, sliding_window=511)
    assert load_model_config(tmp_path, {"max_position_embeddings": 511}).max_position_embeddings == 511


def test_mistral_has_no_biases(tmp_path: Path) -> None:
    config = load(tmp_path, "mistral", ("num_key_value_heads",))
    assert (config.qkv_bias, config.o_bias, config.mlp_bias, config.num_key_value_heads) == (False, False, False, 8)
    with pytest.raises(ConfigError, match="mlp_bias is True, but only"):
        load(tmp_path, "mistral", mlp_bias=True)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_sliding_window_of_later_qwens(tmp_path: Path, family: str) -> None:
    load(tmp_path, family, sliding_window=64, max_window_layers=1)
    with pytest.raises(ConfigError, match="use_sliding_window is True, but only False is supported"):
        load(tmp_path, family, use_sliding_window=True)


def test_qwen2_has_biases_that_no_field_tells(tmp_path: Path) -> None:
    config = load(tmp_path, "qwen2", ("num_key_value_heads",), num_attention_heads=32)
    assert (config.qkv_bias, config.o_bias, config.num_key_value_heads) == (True, False, 32)
    assert load(tmp_path, "qwen2", num_key_value_heads=None).num_key_value_heads == 8  # null is not absent


def test_qwen3(tmp_path: Path) -> None:
    config = load(tmp_path, "qwen3", ("head_dim", "attention_bias"), hidden_size=60)
    assert (config.head_dim, config.rope.width, config.qk_norm, config.qkv_bias) == (128, 128, "head", False)
    biased = load(tmp_path, "qwen3", attention_bias=True)
    assert (biased.qkv_bias, biased.o_bias, biased.head_dim) == (True, True, 16)


def test_qwen3_moe(tmp_path: Path) -> None:
    config = load(tmp_path, "qwen3_moe", ("head_dim", "norm_topk_prob"), mlp_only_layers=[1])
    assert (config.head_dim, config.qk_norm, config.norm_topk_prob) == (8, "head", False)
    assert config.moe_layers == (True, False, True)
    assert (config.num_experts, config.moe_intermediate_size, config.shared_intermediate_size) == (9, 32, 0)
    assert load(tmp_path, "qwen3_moe", decoder_sparse_step=2).moe_layers == (False, True, False)
    assert (load(tmp_path, "qwen3_moe").norm_topk_prob, config.norm_topk_eps) == (True, 0.0)


def test_mixtral(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    absent = ("num_local_experts", "num_experts_per_tok", "rms_norm_eps", "rope_theta", "num_key_value_heads")
    with caplog.at_level(logging.INFO):
        config = load(tmp_path, "mixtral", absent)
    assert "without effect here: architectures, router_jitter_noise" in caplog.text
    assert (config.num_experts, config.num_experts_per_tok, config.rms_norm_eps) == (8, 2, 1e-5)
    assert (config.rope.theta, config.num_key_value_heads) == (1e6, 8)
    assert (config.moe_intermediate_size, config.norm_topk_prob, config.norm_topk_eps) == (32, True, 0.0)
    assert config.moe_layers == (True, True, True)


def test_olmoe(tmp_path: Path) -> None:
    config = load(tmp_path, "olmoe", ("rms_norm_eps", "norm_topk_prob", "eos_token_id"), clip_qkv=8)
    assert (config.qk_norm, config.clip_qkv, config.rms_norm_eps, config.norm_topk_prob) == ("wide", 8.0, 1e-5, False)
    assert (config.moe_intermediate_size, config.eos_token_ids) == (32, (50279,))
    assert load(tmp_path, "olmoe").clip_qkv is None
    with pytest.raises(ConfigError, match="clip_qkv is -1, but must be a number above 0"):
        load(tmp_path, "olmoe", clip_qkv=-1)


@pytest.mark.parametrize(
    ("family", "field"),
    [("qwen", "num_experts"), ("qwen", "shared_expert_intermediate_size"), ("xverse", "moe_top_k"),
     ("qwen3_moe", "num_experts"), ("qwen3_moe", "moe_intermediate_size")],
)  # fmt: skip
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
