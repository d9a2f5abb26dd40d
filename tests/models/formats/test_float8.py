"""float8: scales by block, output and tensor, dequantised in float32, and what does not fit."""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atb_models.errors import CheckpointError, ConfigError
from tests.models.formats.checkpoints import check, edit, golden, is_linear, quantized_copy
from tests.models.formats.packing import float8
from tests.models.quantized.reading import floats_of, opened, read, scheme_of

Q = "model.layers.1.self_attn.q_proj"
DECLARED: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


@pytest.mark.parametrize("block", [(128, 128), (64, 32), (48, 80)])
@pytest.mark.parametrize("name", ["deepseek", "qwen"])
def test_blocks(
    shared: Path, tmp_path: Path, name: str, block: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """The last blocks of 48 x 80 are cut at both ends."""
    declared = DECLARED | {"weight_block_size": list(block)}
    expected = quantized_copy(golden(shared, name), tmp_path, declared, partial(float8, block=block))
    with caplog.at_level(logging.INFO):
        scheme = check(tmp_path, expected)
    assert not any(scheme.storage(weight) or scheme.has_bias(weight) for weight in expected)
    assert (scheme.name, scheme.method) == (f"float8 in blocks of {block[0]} x {block[1]}", "float8")
    said = [record.getMessage() for record in caplog.records if "8-bit floats" in record.getMessage()]
    weights = sum(is_linear(weight) for weight in expected)
    assert len(said) == 1 and f"{weights} weights of 8-bit floats become floats" in said[0]


@pytest.mark.parametrize("fmt", ["e4m3", "float8_e4m3", "float8_e4m3fn"])
def test_names_of_the_type(tmp_path: Path, fmt: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": DECLARED | {"fmt": fmt}}))
    assert scheme_of(tmp_path).name == "float8"


@pytest.mark.parametrize("block", [(0, 0), (1, 0)])
@pytest.mark.parametrize("shape", ["matrix", "flat", "scalar"])
def test_scales_without_blocks(shared: Path, tmp_path: Path, block: tuple[int, int], shape: str) -> None:
    """One for a whole weight or for each output, with scales of inputs and of a cache, which are left alone."""
    pack = partial(float8, block=block, scale="weight_scale")
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED | {"activation_scheme": "static"}, pack)

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".weight_scale")]:
            scale = tensors[name]
            flat = scale.flatten() if shape == "flat" or block[0] else scale.view(())
            tensors[name] = scale if shape == "matrix" else flat
            tensors[name.replace("weight_scale", "input_scale")] = torch.ones(1)
        tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)

    edit(tmp_path, change)
    assert check(tmp_path, expected).name == "float8"


def test_numbers_by_hand(tmp_path: Path) -> None:
    numbers = torch.tensor([[1.5, -448.0, 0.001953125, 0.0]], dtype=torch.float8_e4m3fn)
    save_file(
        {f"{Q}.weight": numbers, f"{Q}.weight_scale_inv": torch.tensor([[0.1, 3.0]])}, tmp_path / "model.safetensors"
    )
    config = {"quantization_config": DECLARED | {"weight_block_size": [1, 3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with opened(tmp_path) as (_, source):
        tenth = torch.tensor(0.1)
        expected = torch.stack([1.5 * tenth, -448.0 * tenth, 0.001953125 * tenth, torch.tensor(0.0)])
        assert torch.equal(read(source, f"{Q}.weight", torch.float32)[0], expected)
        assert torch.equal(read(source, f"{Q}.weight", torch.bfloat16, 1, 1, 4)[0], expected[1:].bfloat16())


def test_what_is_no_number_is_counted(shared: Path, tmp_path: Path) -> None:
    declared = DECLARED | {"weight_block_size": [64, 64]}
    quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(float8, block=(64, 64)))

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.weight"].view(torch.uint8)[3, 5:8] = 0x7F

    edit(tmp_path, change)
    with opened(tmp_path) as (_, source):
        assert source.read_into(f"{Q}.weight", 1, 6, 20, torch.empty(128, 14)) == 2
        assert source.read_into(f"{Q}.weight", None, 0, 0, torch.empty(128, 128)) == 3


def test_layers_that_stay_floats(shared: Path, tmp_path: Path) -> None:
    plain = {f"{Q}.weight".replace(".", "__"): lambda name, weight: None}
    declared = DECLARED | {"weight_block_size": [64, 64], "modules_to_not_convert": [Q, "lm_head"]}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(float8, block=(64, 64)), **plain)
    check(tmp_path, expected)
    original = load_file(shared / "golden" / "deepseek" / "model.safetensors")
    assert torch.equal(expected[f"{Q}.weight"], original[f"{Q}.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fmt": "e5m2"}, "fmt is 'e5m2', but only e4m3 is read"),
        ({"activation_scheme": "other"}, "activation_scheme is 'other', but only 'dynamic', 'static' is supported"),
        ({"weight_block_size": 128}, "weight_block_size is 128, but must be two integers"),
        ({"weight_block_size": [128, 0]}, r"weight_block_size is \[128, 0\], but must be two integers"),
        ({"weight_block_size": [128, True]}, r"weight_block_size is \[128, True\], but must be two integers"),
        ({"weight_block_size": [128, 128, 1]}, "weight_block_size is .*, but must be two integers"),
    ],
)
def test_what_is_declared_and_not_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": DECLARED | changes}))
    place = re.escape(f"{tmp_path / 'config.json'}: quantization_config")
    with pytest.raises(ConfigError, match=f"^{place}: {message}"):
        scheme_of(tmp_path)


def put(part: str, change: Any) -> Any:
    def replace(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.{part}"] = change(tensors[f"{Q}.{part}"])

    return replace


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x: x.pop(f"{Q}.weight_scale_inv"), f" has no tensor {Q}.weight_scale_inv, which belongs to {Q}.weight"),
        (
            put("weight_scale_inv", lambda x: x[:1]),
            rf": tensor {Q}.weight_scale_inv has shape \(1, 2\), but .*\(2, 2\)",
        ),
        (put("weight_scale_inv", lambda x: x.long()), rf": tensor {Q}.weight_scale_inv is torch.int64, but must be"),
        (put("weight", lambda x: x[:64]), rf": tensor {Q}.weight_scale_inv has shape \(2, 2\), but .*\(1, 2\)"),
        (put("weight", lambda x: x.flatten()), rf": tensor {Q}.weight has shape \(16384,\), but must have two dim"),
    ],
)
def test_files_that_do_not_fit(shared: Path, tmp_path: Path, damage: Any, message: str) -> None:
    declared = DECLARED | {"weight_block_size": [64, 64]}
    quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(float8, block=(64, 64)))
    edit(tmp_path, damage)
    file = re.escape(str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match=f"^{file}{message}"), opened(tmp_path) as (scheme, source):
        floats_of(scheme, source, f"{Q}.weight")


def test_a_scale_beside_floats_is_left_over(shared: Path, tmp_path: Path) -> None:
    """The loader refuses it: the weight would be another."""
    declared = DECLARED | {"weight_block_size": [64, 64]}
    quantized_copy(golden(shared, "deepseek"), tmp_path, declared, partial(float8, block=(64, 64)))
    edit(tmp_path, put("weight", lambda x: x.bfloat16()))
    with opened(tmp_path) as (_, source):
        assert f"{Q}.weight_scale_inv" in source.names()
