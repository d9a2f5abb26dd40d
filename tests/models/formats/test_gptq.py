"""GPTQ: both widths, both forms of zero points, orders by activation, and what is said of files that do not fit."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atb_models.layers.storage import Storage
from tests.models.formats.checkpoints import check, edit, golden, is_linear, quantized_copy
from tests.models.formats.packing import Packed, gptq
from tests.models.quantized.reading import floats_of, opened, read, scheme_of

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.experts.0.down_proj"
DECLARED: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}


def shuffled(weight: Tensor, group: int) -> np.ndarray:
    """Groups of inputs as they come out when inputs are quantised by activation."""
    inputs = weight.shape[1]
    return (np.arange(inputs) // group)[np.random.default_rng(inputs).permutation(inputs)]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_form(shared: Path, tmp_path: Path, bits: int, group: int, symmetric: bool, version: int) -> None:
    """Experts have 64 inputs: less than a group of 128."""
    declared = DECLARED | {"bits": bits, "group_size": group, "sym": symmetric}
    if version == 2:
        declared["checkpoint_format"] = "gptq_v2"
    pack = partial(gptq, bits=bits, group=group, symmetric=symmetric, version=version)
    scheme = check(tmp_path, quantized_copy(golden(shared, "deepseek"), tmp_path, declared, pack))
    wanted = Storage(bits, None if group == -1 else group, offset=not symmetric)  # type: ignore[arg-type]
    assert scheme.storage(f"{Q}.weight") == scheme.storage(f"{DOWN}.weight") == wanted
    for name in ("model.layers.1.mlp.gate.weight", "model.norm.weight", "lm_head.weight"):
        assert scheme.storage(name) is None
    assert scheme.method == f"w{bits}a16"
    assert scheme.name == f"gptq, {bits} bits in {'rows' if group == -1 else f'groups of {group}'}"


def test_a_zero_point_of_zero_wraps_around(tmp_path: Path) -> None:
    """Weights that are all positive: the zero point is 0, which the first format stores as 15."""
    weight = torch.rand(16, 64)
    tensors, expected = gptq(weight, 4, 32, symmetric=False)
    assert (tensors["qzeros"] == -1).all()
    write(tmp_path, {f"{Q}.{part}": tensor for part, tensor in tensors.items()}, DECLARED | {"sym": False})
    with opened(tmp_path) as (scheme, source):
        assert torch.equal(floats_of(scheme, source, f"{Q}.weight"), expected)


def test_numbers_by_hand(tmp_path: Path) -> None:
    """One word of each tensor, taken apart on paper."""
    tensors = {
        "qweight": torch.tensor([[0x76543210, -1], [0x7FFFFFFF, 0x00000008]], dtype=torch.int32).repeat(1, 4),
        "qzeros": torch.full((1, 1), 0x77777777, dtype=torch.int32),
        "scales": torch.tensor([[0.5, 2.0] * 4], dtype=torch.float16),
        "g_idx": torch.zeros(16, dtype=torch.int32),
    }
    write(tmp_path, {f"{Q}.{part}": tensor for part, tensor in tensors.items()}, DECLARED | {"group_size": -1})
    with opened(tmp_path) as (_, source):
        values = read(source, f"{Q}.weight", torch.int8)
        assert values.shape == (8, 16)
        assert values[0].tolist() == [-8, -7, -6, -5, -4, -3, -2, -1, 7, 7, 7, 7, 7, 7, 7, -1]
        assert values[1].tolist() == [7] * 8 + [0] + [-8] * 7
        assert read(source, f"{Q}.weight_scale", torch.float32).tolist() == [0.5, 2.0] * 4


def write(folder: Path, tensors: dict[str, Tensor], declared: dict[str, Any]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": declared}))


# --------------------------------------------------------------------------------------------- orders by activation


@pytest.mark.parametrize("symmetric", [True, False])
def test_scattered_groups_become_floats(
    shared: Path, tmp_path: Path, symmetric: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def pack(weight: Tensor) -> Packed:
        return gptq(weight, 4, 32, symmetric=symmetric, order=shuffled(weight, 32))

    declared = DECLARED | {"desc_act": True, "sym": symmetric}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared, pack)
    with caplog.at_level(logging.WARNING):
        scheme = check(tmp_path, expected)
    assert scheme.storage(f"{Q}.weight") is None
    linear = sum(is_linear(name) for name in expected)
    said = [record.getMessage() for record in caplog.records if "desc_act" in record.getMessage()]
    assert len(said) == 1 and f"the groups of {linear} linear maps are no runs of inputs" in said[0]


def test_an_order_that_is_a_plain_one_keeps_integers(shared: Path, tmp_path: Path) -> None:
    """desc_act with static groups, and rows with one scale, whatever the order."""
    declared = DECLARED | {"desc_act": True}
    scheme = check(tmp_path, quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(gptq, group=32)))
    assert scheme.storage(f"{Q}.weight") == Storage(4, 32)
    declared["group_size"] = -1
    scheme = check(tmp_path, quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(gptq, group=-1)))
    assert scheme.storage(f"{Q}.weight") == Storage(4)


def test_one_scattered_weight_among_others(shared: Path, tmp_path: Path) -> None:
    def scattered(name: str, weight: Tensor) -> Packed:
        return gptq(weight, 4, 32, order=shuffled(weight, 32))

    other = {f"{Q}.weight".replace(".", "__"): scattered}
    declared = DECLARED | {"desc_act": True}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(gptq, group=32), **other)
    scheme = check(tmp_path, expected)
    assert scheme.storage(f"{Q}.weight") is None and scheme.storage(f"{DOWN}.weight") == Storage(4, 32)


# ------------------------------------------------------------------------------------------------- which are packed


def test_a_head_and_a_router_that_are_packed_become_floats(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def pack(name: str, weight: Tensor) -> Packed:
        return gptq(weight, 4, 32)

    router = "model.layers.1.mlp.gate.weight"
    others = {"lm_head__weight": pack, router.replace(".", "__"): pack}
    declared = DECLARED | {"lm_head": True}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(gptq, group=32), **others)
    with caplog.at_level(logging.INFO):
        scheme = check(tmp_path, expected)
    assert scheme.storage("lm_head.weight") is None and scheme.storage(router) is None
    said = "2 quantised weights, held as floats: embeddings, heads and routers are always floats here"
    assert caplog.text.count(f"{said}: lm_head.weight, {router}") == 1
    assert not torch.equal(expected["lm_head.weight"], load_golden(shared)["lm_head.weight"].float())


def load_golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "deepseek" / "model.safetensors")


def test_the_files_tell_what_is_packed(shared: Path, tmp_path: Path) -> None:
    plain = {f"{Q}.weight".replace(".", "__"): lambda name, weight: None}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(gptq, group=32), **plain)
    scheme = check(tmp_path, expected)
    assert scheme.storage(f"{Q}.weight") is None and scheme.storage(f"{DOWN}.weight") == Storage(4, 32)


def test_rules_of_dynamic(shared: Path, tmp_path: Path) -> None:
    """The first that matches, from the start of the name; a bare pattern means the same as one with +:."""
    names = [name for name in load_golden(shared) if is_linear(name)]
    others: dict[str, Any] = {}
    for name in names:
        if name.startswith("model.layers.0."):
            others[name] = lambda _, weight: gptq(weight, 8, 64, symmetric=False)
        elif ".o_proj" in name:
            others[name] = lambda _, weight: None
        elif name.startswith("model.layers.2."):
            others[name] = lambda _, weight: gptq(weight, 4, 64)
    dynamic = {
        r"+:model\.layers\.0\..*": {"bits": 8, "group_size": 64, "sym": False},
        r"-:.*\.o_proj": {},
        r".*\.layers\.2\.": {"group_size": 64},
        r"o_proj": {"bits": 8},
    }
    others = {name.replace(".", "__"): function for name, function in others.items()}
    declared = DECLARED | {"dynamic": dynamic}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(gptq, group=32), **others)
    scheme = check(tmp_path, expected)

    def storages() -> list[Storage | None]:
        return [scheme.storage(f"model.layers.{i}.self_attn.{part}_proj.weight") for i, part in enumerate("oovv")]

    wanted = [Storage(8, 64, offset=True), None, Storage(4, 64), Storage(4, 32)]
    assert storages() == wanted and "some layers otherwise" in scheme.name
    (tmp_path / "model.safetensors").unlink()
    scheme = scheme_of(tmp_path)
    assert storages() == wanted, "without files, by the rules"


def test_parts_of_layers_without_files(tmp_path: Path) -> None:
    declared = DECLARED | {
        "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj", "self_attn.o_proj"]]
    }
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": declared}))
    scheme = scheme_of(tmp_path)
    assert scheme.storage(f"{Q}.weight") == Storage(4, 32)
    assert scheme.storage("model.layers.0.mlp.down_proj.weight") == Storage(4, 32)
    assert scheme.storage("model.layers.0.self_attn.k_proj.weight") is None
    assert scheme.storage(f"{DOWN}.weight") is None
    assert not scheme.has_bias(f"{Q}.weight")


def test_desc_act_without_files_means_floats(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": DECLARED | {"desc_act": True}}))
    assert scheme_of(tmp_path).storage(f"{Q}.weight") is None


# ----------------------------------------------------------------------------------------------------------- biases


def test_biases_of_zeros_are_spare(shared: Path, tmp_path: Path) -> None:
    """As in Qwen's official checkpoint: every packed map has a bias, only those of q, k and v are no zeros."""
    expected = quantized_copy(golden(shared, "qwen"), tmp_path, DECLARED, partial(gptq, group=32))
    packed = [name.removesuffix(".weight") for name in expected if is_linear(name)]
    placeholders = {f"{module}.bias" for module in packed} - expected.keys()
    assert len(placeholders) > 100

    def add(tensors: dict[str, Tensor]) -> None:
        for name in placeholders:
            tensors[name] = torch.zeros(tensors[name.replace("bias", "scales")].shape[1], dtype=torch.float16)
        tensors[f"{DOWN}.bias"][3] = 0.25

    edit(tmp_path, add)
    with opened(tmp_path) as (scheme, source):
        assert source.spare() == placeholders - {f"{DOWN}.bias"}  # type: ignore[attr-defined]
        assert expected.keys() | placeholders <= source.names()
        assert {name for name in expected if scheme.has_bias(name)} == {
            f"{DOWN}.weight",
            *(f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(4) for part in "qkv"),
        }
        assert read(source, f"{DOWN}.bias", torch.float32)[3] == 0.25


# ------------------------------------------------------------------------------------------------------------ files


def test_names_of_files_and_of_the_declaration(shared: Path, tmp_path: Path) -> None:
    """As AutoGPTQ saves them: quantize_config.json beside a config.json that tells nothing."""
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, None, partial(gptq, group=32))
    own = {field: value for field, value in DECLARED.items() if field != "quant_method"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(own | {"damp_percent": 0.1}))
    assert check(tmp_path, expected).storage(f"{Q}.weight") == Storage(4, 32)
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-32g.safetensors")
    with opened(tmp_path) as (scheme, source):
        assert scheme.storage(f"{Q}.weight") == Storage(4, 32)
        assert torch.equal(floats_of(scheme, source, f"{Q}.weight"), expected[f"{Q}.weight"])
        assert source.where(f"{Q}.weight") == str(tmp_path / "gptq_model-4bit-32g.safetensors")


def test_unknown_fields_are_named(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantized_copy(
        golden(shared, "deepseek"), tmp_path, DECLARED | {"damp_percent": 0.1, "x": 1}, partial(gptq, group=32)
    )
    with caplog.at_level(logging.WARNING), opened(tmp_path):
        pass
    assert [r.getMessage() for r in caplog.records if "unknown" in r.getMessage()] == [
        f"{tmp_path / 'config.json'}: quantization_config: unknown fields are ignored: x"
    ]
