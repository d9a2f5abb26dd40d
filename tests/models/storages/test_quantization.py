"""How a scheme's storages become those of the model's parameters, and what the model refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.graph import meta_model
from atb_models.layers.parameter import fillings
from atb_models.layers.storage import METHODS, Storage
from atb_models.models.config import ModelConfig
from atb_models.models.config_reader import load_model_config
from atb_models.models.quantization import (
    layer_kinds,
    model_quantization,
    quantization_method,
    quantization_name,
    with_layers,
)
from atb_models.models.quantized.scheme import FLOATS
from atb_models.models.weights.weight_map import checkpoint_tensors
from atb_models.ops.weight import Layout
from tests.models.storages.schemes import HandMade

INT8, STATIC = Storage(8), Storage(8, activations="static")


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    """No library packs the weights."""
    ops.bind("reference")
    yield
    ops.bind("reference")


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    tiny.write_checkpoint(tmp_path)
    return load_model_config(tmp_path)


def layouts(config: ModelConfig, size: int = 1, rank: int = 0) -> dict[str, Layout]:
    model = meta_model(config, torch.float16, size, rank)
    return {name: filling.weight.layout for name, filling in fillings(model).items()}


def scheme(config: ModelConfig, storages: dict[str, Storage], **more: Any) -> ModelConfig:
    return replace(config, scheme=HandMade(storages, **more))


def test_a_method_is_for_all_linear_maps_of_the_layers(config: ModelConfig) -> None:
    quantization = model_quantization(config, "w8a16")
    assert quantization is not None and quantization.storage("layers.0.attn.o.weight") == METHODS["w8a16"]
    assert model_quantization(config, None) is None and quantization_name(config, None) is None
    model = meta_model(config, torch.float16, quantize="w8a16")
    floats = {name for name, filling in fillings(model).items() if not filling.weight.layout.quantized}
    ends = {name.split(".", 2)[-1] for name in floats if name.startswith("layers.")}
    assert ends == {"input_norm.weight", "post_norm.weight", "mlp.router.weight"}
    assert floats >= {"embed.weight", "norm.weight", "lm_head.weight"}


def test_each_linear_map_as_its_scheme_says(config: ModelConfig) -> None:
    of = layouts(scheme(config, {"o_proj.weight": Storage(4, 32), "layers.1.mlp.experts.3.up_proj.weight": INT8,
                                 "down_proj.weight": Storage(8, offset=True)}))  # fmt: skip
    assert (of["layers.0.attn.o.weight"].bits, of["layers.0.attn.o.weight"].unit) == (4, 32)
    assert not of["layers.0.attn.qkv.weight"].quantized
    assert of["layers.1.mlp.experts.down"].offsets and of["layers.1.mlp.experts.down"].quantized
    assert not of["layers.1.mlp.experts.gate_up"].quantized, "one of its matrices alone is quantised"


def test_groups_of_the_parts_of_a_matrix_are_cut_to_what_they_have_in_common(config: ModelConfig) -> None:
    storages = {"q_proj.weight": Storage(4, 48), "k_proj.weight": Storage(4, 32), "v_proj.weight": Storage(4)}
    of = layouts(scheme(config, storages))["layers.0.attn.qkv.weight"]
    assert (of.bits, of.unit, of.shape[-1] % 16) == (4, 16, 0)
    storages["v_proj.weight"] = Storage(4, 48, offset=True)
    assert not layouts(scheme(config, storages))["layers.0.attn.qkv.weight"].quantized


@pytest.mark.parametrize(("inputs", "size", "shares", "unit"), [(97, 1, 112, 16), (97, 2, 64, 64), (256, 4, 64, 64),
                                                               (96, 4, 24, 8), (97, 8, 16, 16)])  # fmt: skip
def test_ranks_cut_inputs_at_multiples_of_8(tmp_path: Path, inputs: int, size: int, shares: int, unit: int) -> None:
    tiny.write_checkpoint(tmp_path, intermediate_size=inputs)
    config = scheme(load_model_config(tmp_path), {"down_proj.weight": Storage(4, 64)})
    of = layouts(config, size)
    assert (of["layers.0.mlp.down.weight"].shape[-1], of["layers.0.mlp.down.weight"].unit) == (shares, unit)
    assert of["layers.0.mlp.gate_up.weight"].shape[0] == 2 * shares
    assert layouts(scheme(config, {"down_proj.weight": INT8}), size)["layers.0.mlp.down.weight"].shape[-1] == -(
        -inputs // size
    )


def test_biases_that_only_the_scheme_knows(config: ModelConfig) -> None:
    config = scheme(config, {"_proj.weight": Storage(8, activations="token")}, biases=(
        "layers.0.self_attn.v_proj.weight", "layers.0.self_attn.o_proj.weight", "0.input_layernorm.weight",
        "layers.0.mlp.up_proj.weight", "model.norm.weight"))  # fmt: skip
    names = {tensor.name for tensor in checkpoint_tensors(config) if tensor.name.endswith(".bias")}
    stem = "model.layers.0"
    assert names == {f"{stem}.self_attn.v_proj.bias", f"{stem}.self_attn.o_proj.bias", f"{stem}.input_layernorm.bias",
                     f"{stem}.mlp.up_proj.bias", "model.norm.bias"}  # fmt: skip
    model = meta_model(config, torch.float16, 2, 1)
    found = {name: list(filling.parts) for name, filling in fillings(model).items() if name.endswith("bias")}
    assert found == {"layers.0.attn.qkv.bias": ["v"], "layers.0.attn.o.bias": [""], "layers.0.input_norm.bias": [""],
                     "layers.0.mlp.gate_up.bias": ["up"], "norm.bias": [""]}  # fmt: skip


@pytest.mark.parametrize("family", ["qwen", "deepseek"])
def test_static_linear_maps_have_a_bias_of_floats_where_the_scheme_says_so(tmp_path: Path, family: str) -> None:
    bias = {} if family == "qwen" else {"attention_bias": True}
    tiny.write_checkpoint(tmp_path, family=family, **bias)
    config = load_model_config(tmp_path)
    own = {tensor.name for tensor in checkpoint_tensors(config) if tensor.name.endswith(".bias")}
    assert "model.layers.0.self_attn.q_proj.bias" in own
    for biases, roles in ((), []), (("v_proj.weight",), ["v"]), (("q_proj.weight", "k_proj.weight"), ["q", "k"]):
        static = scheme(config, {"_proj.weight": STATIC}, biases=biases)
        named = [tensor for tensor in checkpoint_tensors(static) if tensor.name.endswith(".bias")]
        assert [tensor.role for tensor in named if tensor.parameter == "layers.0.attn.qkv.bias"] == roles
        assert len(named) == len(roles) * config.num_hidden_layers
        model = meta_model(static, torch.float16)
        held = {name: filling.parts for name, filling in fillings(model).items() if name.endswith(".bias")}
        assert [list(parts) for name, parts in held.items() if name == "layers.0.attn.qkv.bias"] == [roles] * bool(
            roles
        )
        assert len(held) == (config.num_hidden_layers if roles else 0)
        assert model.layers[0].attn.qkv.stored.quant_bias is not None


def test_what_cannot_be_held_together_is_refused(config: ModelConfig) -> None:
    said = r"q_proj.weight takes static int8 activations and model.layers.0.self_attn.k_proj.weight does not"
    with pytest.raises(ConfigError, match=said):
        meta_model(scheme(config, {"q_proj.weight": STATIC, "k_proj.weight": INT8}), torch.float16)
    with pytest.raises(ConfigError, match=r"experts.0.up_proj.weight has a bias, which routed experts do not take"):
        meta_model(scheme(config, {"_proj.weight": INT8}, biases=("experts.0.up_proj.weight",)), torch.float16)
    for storage in Storage(8, 64, activations="token"), Storage(4, activations="static"), replace(STATIC, offset=True):
        with pytest.raises(ConfigError, match="o_proj.weight"):
            meta_model(scheme(config, {"o_proj.weight": storage}), torch.float16)


def test_a_method_beside_integers_is_refused_and_beside_floats_is_not(config: ModelConfig) -> None:
    said = r"quantize is w4a16, but the checkpoint's weights are quantised already \(by hand, 8 bits\); leave it out"
    with pytest.raises(ConfigError, match=said):
        model_quantization(scheme(config, {"o_proj.weight": INT8}), "w4a16")
    floats = scheme(config, {}, name="8-bit floats", biases=("model.norm.weight",))
    quantization = model_quantization(floats, "w4a16")
    assert (
        quantization is not None
        and quantization.name == "w4a16"
        and quantization.biases == {"norm.weight": frozenset({""})}
    )
    assert quantization_name(floats, None) is None and quantization_name(floats, "w4a16") == "w4a16"
    assert quantization_name(scheme(config, {"o_proj.weight": INT8}), None) == "w8a8"


def test_the_method_that_made_the_numbers(config: ModelConfig) -> None:
    """Also where the weights are floats in memory, but not where the format's tensors are floats."""
    assert quantization_method(config, None) is None and quantization_method(config, "w4a16") == "w4a16"
    read_as_floats = scheme(config, {}, method="float8")
    assert quantization_name(read_as_floats, None) is None and quantization_method(read_as_floats, None) == "float8"
    floats = scheme(config, {}, method=FLOATS)
    assert quantization_method(floats, None) is None and quantization_method(floats, "w8a16") == "w8a16"


def test_layers_are_alike_that_are_stored_alike(tmp_path: Path) -> None:
    """The last one is alone: it takes fewer tokens."""
    tiny.write_checkpoint(tmp_path, num_hidden_layers=6)
    config = load_model_config(tmp_path)
    assert layer_kinds(config) == [[0], [1, 2, 3, 4], [5]]
    mixed = scheme(config, {"layers.2.self_attn.o_proj.weight": INT8, "layers.4.self_attn.o_proj.weight": INT8},
                   biases=("layers.3.input_layernorm.weight",))  # fmt: skip
    assert layer_kinds(mixed) == [[0], [1], [2, 4], [3], [5]]
    few = with_layers(mixed, [0, 4, 3])
    assert few.moe_layers == (False, True, True) and few.num_hidden_layers == 3
    assert few.scheme is not None
    stored = [few.scheme.storage(f"model.layers.{i}.self_attn.o_proj.weight") for i in range(3)]
    assert stored == [None, INT8, None] and few.scheme.has_bias("model.layers.2.input_layernorm.weight")
