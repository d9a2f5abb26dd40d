"""config.json: every field is honoured, refused with its value, named as without effect, or warned of."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny

from atb_models.errors import CheckpointError, ConfigError
from atb_models.layers.storage import Storage
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.dtypes import torch_dtype
from atb_models.models.rope import LinearScaling, Rope


def write(folder: Path, remove: tuple[str, ...] = (), **fields: Any) -> Path:
    config = {name: value for name, value in {**tiny.DEEPSEEK, **fields}.items() if name not in remove}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path, **fields: Any) -> ModelConfig:
    return load_model_config(write(folder, **fields))


def test_tiny_config_is_read(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.hidden_size, config.head_dim, config.num_key_value_heads) == (64, 8, 8)
    assert config.moe_layers == (False, True, True)
    assert (config.num_experts, config.num_experts_per_tok) == (8, 3)
    assert (config.moe_intermediate_size, config.shared_intermediate_size) == (32, 64)
    assert (config.norm_topk_prob, config.norm_topk_eps) == (False, 1e-20)
    assert (config.torch_dtype, config.initializer_range) == ("bf16", 0.1)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))
    assert config.overridden == ()


def test_dense_and_moe_layers(tmp_path: Path) -> None:
    many = load(tmp_path, num_hidden_layers=7, first_k_dense_replace=2, moe_layer_freq=3)
    assert many.moe_layers == (False, False, False, True, False, False, True)
    assert load(tmp_path, first_k_dense_replace=0).moe_layers == (True, True, True)
    dense = load(tmp_path, n_routed_experts=None, num_experts_per_tok=None)
    assert dense.moe_layers == (False, False, False)
    assert (dense.num_experts, dense.shared_intermediate_size) == (0, 0)


@pytest.mark.parametrize("shared", [None, 0])
def test_no_shared_experts(tmp_path: Path, shared: int | None) -> None:
    assert load(tmp_path, n_shared_experts=shared).shared_intermediate_size == 0


def test_fields_that_change_the_mathematics_are_honoured(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        attention_bias=True,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        norm_topk_prob=True,
        rope_theta=5e5,
        rope_scaling={"type": "linear", "factor": 4.0},
        rms_norm_eps=1e-5,
        head_dim=16,
    )
    assert config.qkv_bias and config.o_bias and config.tie_word_embeddings and config.norm_topk_prob
    assert (config.num_key_value_heads, config.head_dim) == (2, 16)
    assert (config.rope, config.rms_norm_eps) == (Rope(5e5, 16, scaling=LinearScaling(4.0)), 1e-5)


def test_newer_spellings(tmp_path: Path) -> None:
    assert load(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2}).rope.scaling == LinearScaling(2.0)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = load_model_config(write(tmp_path, ("rope_theta", "torch_dtype"), rope_parameters=rope, dtype="float16"))
    assert (config.rope, config.torch_dtype) == (Rope(1e6, 8), "fp16")
    for rope in ({"rope_theta": 500.0}, {"rope_theta": 500.0, "rope_type": None}):
        config = load_model_config(write(tmp_path, ("rope_theta",), rope_parameters=rope))
        assert config.rope == Rope(500.0, 8)


def test_absent_fields_have_the_published_defaults(tmp_path: Path) -> None:
    names = ("num_key_value_heads", "rope_theta", "rope_scaling", "attention_bias", "scoring_func", "hidden_act")
    config = load_model_config(write(tmp_path, (*names, "tie_word_embeddings", "moe_layer_freq", "norm_topk_prob")))
    assert (config.num_key_value_heads, config.rope) == (8, Rope(10000.0, 8))
    assert not (config.qkv_bias or config.tie_word_embeddings or config.norm_topk_prob)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu"),
        ("scoring_func", "sigmoid"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "longrope", "factor": 2.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0, "beta_fast": 32}),
        ("rope_scaling", {"factor": 2.0}),
        ("rope_scaling", {"type": "linear", "rope_type": "yarn", "factor": 2.0}),
        ("rope_scaling", {"type": "yarn", "rope_type": "linear", "factor": 2.0}),
        ("rope_scaling", "linear"),
        ("model_type", "falcon"),
        ("model_type", None),
        ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}),
        ("sliding_window", 128),
        ("torch_dtype", "float64"),
        ("num_key_value_heads", 3),
        ("num_attention_heads", 7),
        ("num_experts_per_tok", 9),
        ("hidden_size", "abc"),
        ("hidden_size", -64),
        ("hidden_size", 64.0),
        ("num_hidden_layers", True),
        ("vocab_size", 0),
        ("rms_norm_eps", 0),
        ("rope_theta", "1e4"),
        ("norm_topk_prob", "false"),
        ("eos_token_id", [1, [2, 3]]),
    ],
)
def test_refused_with_file_field_and_value(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, **{field: value})
    shown = str(value["factor"] if field == "rope_scaling" and isinstance(value, dict) else value)
    message = str(refusal.value)
    assert "config.json" in message and shown in message
    assert field in message or "experts per token" in message or "hidden_size" in message


def test_quantised_weights_are_read_by_their_scheme_or_refused(tmp_path: Path) -> None:
    assert load(tmp_path).scheme is None
    with pytest.raises(ConfigError, match="config.json: quantization_config: quant_method is 'bitsandbytes'"):
        load(tmp_path, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ConfigError, match="quant_model_description"):
        load(tmp_path, quantize="w8a8_dynamic")
    types = {"model_quant_type": "W8A8_DYNAMIC", "model.layers.0.self_attn.o_proj.weight": "W8A8_DYNAMIC"}
    (tmp_path / "quant_model_description.json").write_text(json.dumps(types))
    for declared in {"quantize": "w8a8_dynamic"}, {"quantization_config": {"group_size": 0}}:
        scheme = load(tmp_path, **declared).scheme
        assert scheme is not None and scheme.method == "w8a8_dynamic"
        assert scheme.storage("model.layers.0.self_attn.o_proj.weight") == Storage(8, activations="token")


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "moe_intermediate_size"])
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {field} is missing"):
        load_model_config(write(tmp_path, (field,)))
    with pytest.raises(ConfigError, match=f"config.json: {field} is null"):
        load(tmp_path, **{field: None})


def test_rope_factor_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config.json: rope_scaling: factor is 'two'"):
        load(tmp_path, rope_scaling={"type": "linear", "factor": "two"})


def test_odd_head_dim_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rotary positions turn pairs, but a head has 9 values to turn"):
        load(tmp_path, head_dim=9)


def test_fields_without_effect_are_listed_once_and_unknown_ones_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load(tmp_path, use_cache=True, aux_loss_alpha=0.1, pretraining_tp=4, made_up=1, pruned_heads={}, auto_map={})
    notices = [record for record in caplog.records if "without effect" in record.message]
    assert len(notices) == 1 and notices[0].levelno == logging.INFO
    assert all(name in notices[0].message for name in ("aux_loss_alpha", "auto_map", "pretraining_tp", "use_cache"))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "made_up" in warnings[0].message and "use_cache" not in warnings[0].message


def test_quiet_on_other_ranks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_model_config(write(tmp_path, made_up=1), log=False)
    assert not caplog.records


def test_overrides_replace_fields(tmp_path: Path) -> None:
    config = load_model_config(write(tmp_path), {"num_hidden_layers": 2, "rope_theta": 5000})
    assert (config.num_hidden_layers, config.moe_layers, config.rope.theta) == (2, (False, True), 5000.0)
    assert config.overridden == ("num_hidden_layers", "rope_theta")


@pytest.mark.parametrize("name", ["num_hiden_layers", "num_layers"])
def test_unknown_override_lists_close_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} .*num_hidden_layers"):
        load_model_config(write(tmp_path), {name: 2})


def test_override_without_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use_cache is no field that changes this model"):
        load_model_config(write(tmp_path), {"use_cache": False})


def test_override_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_hidden_layers is 'four', but must be an integer"):
        load_model_config(write(tmp_path), {"num_hidden_layers": "four"})


@pytest.mark.parametrize(("spelling", "name"), [("torch.float16", "fp16"), ("bfloat16", "bf16"), ("float32", "fp32")])
def test_dtype_names(tmp_path: Path, spelling: str, name: str) -> None:
    assert load(tmp_path, torch_dtype=spelling).torch_dtype == name
    assert str(torch_dtype(name)) == f"torch.{spelling.removeprefix('torch.')}"


def test_auto_dtype(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.run_dtype("auto"), config.run_dtype("fp16")) == ("bf16", "fp16")
    undeclared = load_model_config(write(tmp_path, ("torch_dtype",)))
    assert undeclared.run_dtype("fp32") == "fp32"
    assert undeclared.run_dtype("auto") == "fp16"


@pytest.mark.parametrize("text", ["{not json", "", "[1]", "\xff"])
def test_unreadable_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json (is not valid JSON|is not UTF-8 text|holds a JSON list)"):
        load_model_config(tmp_path)


def test_folder_without_config_shows_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"config\.json does not exist.*notes\.txt"):
        load_model_config(tmp_path)


def test_git_lfs_pointer_and_broken_link_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        load_model_config(tmp_path)
    path.unlink()
    path.symlink_to("../blobs/0")
    with pytest.raises(CheckpointError, match="link to ../blobs/0, which does not exist"):
        load_model_config(tmp_path)


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    trap = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"
    (tmp_path / "configuration_deepseek.py").write_text(trap)
    load(tmp_path, auto_map={"AutoConfig": "configuration_deepseek.DeepseekConfig"})
    assert not (tmp_path / "ran").exists()
