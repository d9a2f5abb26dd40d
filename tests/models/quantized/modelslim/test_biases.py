"""Biases in ModelSlim's files that config.json does not tell of: those of zeros, and those that have no place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from atb_models.errors import ConfigError
from atb_models.layers.parameter import fillings
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.quantization import model_quantization
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights
from tests.models.quantized.modelslim.writer import Form, every, quantized, save
from tests.models.quantized.reading import opened, scheme_of
from tests.records import build_of

EXPERT, ROUTER = "model.layers.1.mlp.experts.2.up_proj", "model.layers.1.mlp.gate"
SHARED_GATE, HEAD, EMBEDDING = "model.layers.0.mlp.shared_expert_gate", "lm_head", "model.embed_tokens"
OUT, POST = "model.layers.1.self_attn.o_proj", "model.layers.1.post_attention_layernorm"
WITHOUT_PLACE = {
    EXPERT: ("deepseek", "routed experts do"),
    ROUTER: ("deepseek", "a router does"),
    SHARED_GATE: ("qwen", "the gate of a shared expert does"),
    HEAD: ("deepseek", "an output head does"),
    EMBEDDING: ("deepseek", "an embedding does"),
}


def write(folder: Path, family: str, linear: str, value: float) -> None:
    """W8A16 of a small checkpoint, with a bias of zeros but for its last value."""
    plain = folder / "floats"
    tiny.write_checkpoint(plain, family=family)
    form = Form("w8a16", every("W8A16"), "1.0.0")
    tensors = load_file(plain / "model.safetensors")
    written = quantized(tensors, form)
    bias = torch.zeros(len(tensors[f"{linear}.weight"]))
    bias[-1] = value
    written.add("FLOAT", **{f"{linear}.bias": bias})
    save(folder, written, form, json.loads((plain / "config.json").read_text()))


def loaded(folder: Path) -> Decoder:
    config = load_model_config(folder)
    model = build_model(config, build_of(torch.float32, quantization=model_quantization(config, None)))
    source = open_weights(folder, "auto", model, config)
    load_weights(model, config, source)
    source.close()
    return model


@pytest.mark.parametrize("linear", WITHOUT_PLACE)
def test_a_bias_that_has_no_place_is_refused_by_name(tmp_path: Path, linear: str) -> None:
    family, words = WITHOUT_PLACE[linear]
    write(tmp_path, family, linear, 0.5)
    assert scheme_of(tmp_path).has_bias(f"{linear}.weight")
    with pytest.raises(ConfigError, match=rf"^{linear}.weight has a bias, which {words} not take here$"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("family", "linear"), [*((family, linear) for linear, (family, _) in WITHOUT_PLACE.items()), ("deepseek", POST)]
)
def test_a_bias_of_zeros_is_spare(tmp_path: Path, family: str, linear: str) -> None:
    write(tmp_path, family, linear, 0.0)
    with opened(tmp_path) as (scheme, source):
        assert not scheme.has_bias(f"{linear}.weight")
        assert source.spare() == {f"{linear}.bias"}
    assert not any(name.endswith(".bias") for name in fillings(loaded(tmp_path)) if "attn.qkv" not in name)


@pytest.mark.parametrize("linear", [OUT, POST])
def test_a_bias_that_is_not_zero_is_loaded(tmp_path: Path, linear: str) -> None:
    write(tmp_path, "deepseek", linear, 0.5)
    with opened(tmp_path) as (scheme, source):
        assert scheme.has_bias(f"{linear}.weight") and source.spare() == frozenset()
    model = loaded(tmp_path)
    bias = {OUT: model.layers[1].attn.o, POST: model.layers[1].post_norm}[linear].bias
    assert bias is not None and bias[-1] == 0.5 and not bias[:-1].any()
