"""Fields that change a model's mathematics: refused with file, field and value, unless they change nothing."""

from __future__ import annotations

import ast
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny import FAMILIES, LATER

from atb_models.errors import ConfigError
from atb_models.models.config import ModelConfig
from atb_models.models.config_neutral import NEUTRAL, SAME
from atb_models.models.config_reader import load_model_config
from atb_models.models.config_unknown import what_tells
from atb_models.models.quantized.read import FIELDS

# Fields of the table that a family reads itself, by other rules.
READ = {
    "deepseek": {"scoring_func", "first_k_dense_replace", "moe_layer_freq"},
    "qwen": {"decoder_sparse_step", "mlp_only_layers", "sliding_window"},
    "xverse": set(),
    "llama": {"mlp_bias"},
    "mistral": {"sliding_window"},
    "qwen2": {"sliding_window"},
    "qwen3": {"sliding_window"},
    "qwen3_moe": {"decoder_sparse_step", "mlp_only_layers", "sliding_window"},
    "mixtral": {"sliding_window", "router_jitter_noise"},
    "olmoe": {"clip_qkv"},
}
ALL = FAMILIES | LATER


def write(folder: Path, family: str = "deepseek", **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**ALL[family], **fields}))
    return folder


def load(folder: Path, family: str = "deepseek", **fields: Any) -> ModelConfig:
    return load_model_config(write(folder, family, **fields))


def other_than(allowed: tuple[Any, ...]) -> list[Any]:
    """Values of the field's own types, none of them neutral."""
    candidates: list[Any] = [True, False, 3, 0.25, -1, "something else", {"method": "other"}, [1, 2]]
    return [value for value in candidates if value not in allowed]


# They name the format of quantised weights, see models/quantized/read.py, and are refused as that.
FORMAT_FIELDS = ("quantize", "quantization", *FIELDS)


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(family, marks=pytest.mark.full) for family in LATER)])
def test_a_field_that_changes_the_mathematics_is_refused(family: str, tmp_path: Path) -> None:
    assert len(NEUTRAL) > 200
    for name in NEUTRAL.keys() - READ[family]:
        for value in NEUTRAL[name]:
            load(tmp_path, family, **{name: value})
        for value in other_than(NEUTRAL[name]):
            with pytest.raises(ConfigError) as refusal:
                load(tmp_path, family, **{name: value})
            only = f"{tmp_path / 'config.json'}: {name} is {value!r}, but only "
            assert name in str(refusal.value) if name in FORMAT_FIELDS else str(refusal.value).startswith(only), name


@pytest.mark.parametrize(
    ("family", "field", "neutral", "other"),
    [
        ("deepseek", "attention_multiplier", 8**-0.5, 0.0078125),
        ("deepseek", "softmax_scale", 8**-0.5, 1.0),
        ("qwen", "query_pre_attn_scalar", 8, 256),
        ("xverse", "rotary_dim", 8, 4),
        ("deepseek", "v_head_dim", 8.0, 128),
        ("xverse", "dim_model_base", 64, 256),
        ("qwen", "layer_norm_eps", 1e-6, 1e-5),
        ("deepseek", "rotary_emb_base", 10000, 500000),
        ("xverse", "num_experts_per_tok", 3, 4),
        ("deepseek", "moe_top_k", 3, 2),
        ("xverse", "norm_topk_prob", True, False),
        ("deepseek", "query_pre_attn_scalar", 8, 10**400),
        ("deepseek", "attn_scale", 8**-0.5, "large"),
        ("deepseek", "attn_scale", None, True),
    ],
)
def test_one_that_repeats_another_must_agree_with_it(
    family: str, field: str, neutral: Any, other: Any, tmp_path: Path
) -> None:
    assert field in SAME
    load(tmp_path, family, **{field: neutral})
    with pytest.raises(ConfigError, match=f"config.json: {field} is .*, but only .* is supported, which the other fie"):
        load(tmp_path, family, **{field: other})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pre_softmax_softcapping", 30.0), ("mlp_multipliers", [0.8, 0.5]), ("ssm_out_multiplier", 0.1),
        ("head_logits_scaling", 13.0), ("kv_cache_quantization", "int8"), ("weight_quant", {"bits": 4}),
        ("mup_hidden_scale", 2), ("clip_hidden", 1e4), ("rope_variant", "2d"), ("vision_rope_theta", 1e4),
        ("sliding_tokens", 512), ("o_lora_rank_2", 3), ("lora_rank", 16), ("query_softmax_mode", "off_by_one"),
        ("qk_norm_2", True), ("parallel_attn_mode", "gptj"), ("use_alibi_bias", True), ("window_pattern", "LG"),
        ("expert_scoring_func", "sigmoid"), ("gate_activation", "relu"), ("position_encoding_kind", "alibi"),
        ("ffn_activation", "gelu"), ("input_norm_type", "layernorm"), ("expert_bias", True), ("qkv_bias", True),
    ],
)  # fmt: skip
def test_an_unknown_field_whose_name_tells_is_refused_and_can_be_taken_away(
    field: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is .* by its name it changes the .*'{{\"{field}\": null}}' takes"):
        load(tmp_path, **{field: value})
    assert load_model_config(tmp_path, {field: None}).overridden == (field,)
    load(tmp_path, **{field: None})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("field", ["score_function", "moe_score_func", "gating_function", "pos_emb", "ffn_activation"])
def test_a_choice_under_any_name_is_taken_where_it_is_the_models_own(family: str, field: str, tmp_path: Path) -> None:
    own, other = {"pos_emb": ("rope", "alibi"), "ffn_activation": ("silu", "gelu")}.get(field, ("softmax", "sigmoid"))
    load(tmp_path, family, **{field: own})
    with pytest.raises(ConfigError, match=f"config.json: {field} is '{other}'"):
        load(tmp_path, family, **{field: other})


def test_a_known_field_can_be_taken_away_too(tmp_path: Path) -> None:
    write(tmp_path, clip_qkv=6.0)
    assert load_model_config(tmp_path, {"clip_qkv": None}).model_type == "deepseek"
    with pytest.raises(ConfigError, match="config_overrides: clip_qkv is 8.0, but only"):
        load_model_config(tmp_path, {"clip_qkv": 8.0})
    with pytest.raises(ConfigError, match="qk_norm_2 is no field that changes this model"):
        load_model_config(tmp_path, {"clip_qkv": None, "qk_norm_2": None})  # which the file has not


def test_bookkeeping_of_unknown_names_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = {"trained_by": "us", "n_tokens": 3, "line\nbreak": 1, "x" * 500: 1, "flash_attention_version": 2}
    load(tmp_path, **odd, **{f"extra_{i:03d}": i for i in range(200)})
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "unknown fields are ignored" in warning and "extra_000, extra_001" in warning and "and 185 more" in warning
    assert "\n" not in warning and len(warning) < 1000


def published_decoder_fields() -> Iterator[tuple[str, str, Any]]:
    """(class, field, default) of the configuration classes of transformers' causal language models."""
    models = Path(transformers.__file__).parent / "models"
    decoders = "bloom falcon fuyu gpt2 gpt_bigcode gpt_neo gpt_neox gptj llama mistral mixtral mpt opt persimmon phi"
    for model in decoders.split():
        (path,) = models.glob(f"{model}/configuration_{model}.py")
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        for node in [node for one in classes if not one.name.endswith("OnnxConfig") for node in one.body]:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                names = [argument.arg for argument in node.args.args][len(node.args.args) - len(node.args.defaults) :]
                for name, default in zip(names, node.args.defaults, strict=True):
                    if isinstance(default, ast.Constant):
                        yield model, name, default.value


def test_no_field_of_published_decoders_that_acts_on_numbers_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left is sizes under other names, which the tensors' shapes tell, token ids, and dropout in training."""
    sizes = re.compile(
        r"(^|_)(n|num|max|d|ffn|dff|hidden|image|patch|vocab|intermediate)(_|$)|_(dim|size|ratio|layers|heads?)$|token_id"
        r"|dropout|pdrop|summary|initializer|init_std|use_cache|verbose|length|group_size|multi_query|attention_heads"
    )
    acting = {name for _, name, _ in published_decoder_fields() if not sizes.search(name)}
    assert len(acting) > 40
    load(tmp_path, **{name: None for name in acting if name not in FAMILIES["deepseek"]})
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] or [""]
    assert "unknown fields" not in warning, warning


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scoring_fn", "sigmoid"), ("score_fn", "Sigmoid"), ("router_act_fn", "sigmoid"), ("gate_type", "sigmoid"),
        ("moe_gating", "sigmoid"), ("routing_score", "SIGMOID"), ("use_sigmoid", True), ("sigmoid_gating", True),
        ("router", {"kind": {"score": "sigmoid"}}), ("gate", "noaux_tc"), ("router_kind", "sqrt_softplus"),
        ("act_fn", "gelu"), ("hidden_act_fn", "gelu_new"), ("mlp_act", "GELU"), ("nonlinearity", "quick_gelu"),
        ("mlp", ["relu2", "silu"]), ("ffn_kind", "geglu"), ("use_gelu", True), ("act", "gelu_pytorch_tanh"),
        ("norm", "layernorm"), ("norm_class", "LayerNorm"), ("layernorm_type", "layer_norm"), ("ln", "FusedLayerNorm"),
        ("normalizer", "torch.nn.LayerNorm"), ("pe_type", "alibi"), ("positions", "learned"), ("pos", "sinusoidal"),
        ("place", "relative_key_query"), ("place", "learned_absolute"), ("learned_position_embeddings", True),
        ("use_absolute_position_embeddings", True), ("attention_kind", "sliding_attention"), ("mixer", "mamba2"),
        ("use_rms_norm", False), ("use_swiglu", False), ("use_softmax", 0), ("gated_mlp", False),
    ],
)  # fmt: skip
def test_a_word_of_what_is_not_computed_here_is_refused_in_any_field(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{field} is .*, which this project .* by its (name|value) it changes the"):
        load(tmp_path, **{field: value})
    assert load_model_config(tmp_path, {field: None}).overridden == (field,)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("original_max_position_embeddings", 4096), ("num_position_embeddings", 4096), ("position_embeddings", 2048),
        ("use_position_embeddings", True), ("aux_free_bias", 0.001), ("router_bias_rate", 0.001), ("expert_bias", 0.5),
        ("activation", "SiLU"), ("act_fn", "Swish"), ("hidden_act_fn", "silu"), ("mlp", {"act_fn": {"name": "silu"}}),
        ("score_function", "Softmax"), ("scoring_fn", "SOFTMAX"), ("router_act_fn", "softmax"), ("use_softmax", True),
        ("norm_type", "RMS-Norm"), ("norm", "RMSNorm"), ("norm_class", "rms_norm"), ("pe_type", "RoPE"),
        ("position_embedding_type", "Rotary"), ("activation_function", "Silu"), ("use_sigmoid", False),
        ("bias_gelu_fusion", True), ("clip_grad", 0.5), ("loss_kind", "sigmoid"), ("based_on", "my-gelu-7b"),
        ("remark", "trained with a sigmoid loss and no layernorm"), ("licence", "apache-2.0"), ("use_swiglu", True),
    ],
)  # fmt: skip
def test_sizes_rates_remarks_and_words_of_what_is_computed_are_taken(
    family: str, field: str, value: Any, tmp_path: Path
) -> None:
    load(tmp_path, family, **{field: value})


def test_a_word_that_a_pattern_could_try_in_many_ways_is_read_at_once() -> None:
    started = time.process_time()
    for text in ("fusedgelu" + "pos" * 10 + "!", "bias" * 9, "a.b" * 10_000, "np" * 20 + "x"):
        assert what_tells("anything", [text] * 100) is None
    assert time.process_time() - started < 1


def test_names_of_our_own_fields_tell_nothing_wrong() -> None:
    """A family that reads a field is not hindered; harmless names of the published checkpoints are not caught."""
    harmless = (
        "initializer_range", "vocab_size", "normalize", "eclipse", "european", "topology", "activation_checkpointing",
        "activation_offload", "router_bias_update_rate", "position_ids", "aggregate_function", "unbiased_std",
    )  # fmt: skip
    caught = [(name, value) for name in harmless for value in (True, 3, "on") if what_tells(name, value) is not None]
    assert caught == []
