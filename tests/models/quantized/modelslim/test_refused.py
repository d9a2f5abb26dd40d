"""ModelSlim's folders that are not read: each is refused by name, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from atb_models.errors import CheckpointError, ConfigError
from tests.models.quantized.modelslim.small import NEW, OLD, TENSORS, K, Q, configure, describe, fails, write
from tests.models.quantized.modelslim.writer import Form, every, save
from tests.models.quantized.reading import scheme_of

# ---------------------------------------------------------------------------------------------------------- not read


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("W8A8S", "sparse weights, which only the unit of an Atlas 300I DUO"),
        ("W8A8SC", "sparse weights, which only the unit of an Atlas 300I DUO"),
        ("W16A16S", "sparse weights, which only the unit of an Atlas 300I DUO"),
        ("W4A8_DYNAMIC", "4-bit weights whose scales come in two stages"),
        ("W4A4_DYNAMIC", "4-bit activations"),
        ("W4A4_FLATQUANT_DYNAMIC", "4-bit activations"),
        ("FAQuant", "queries, keys and values quantised within the attention"),
        ("W8A8_MXFP8", "8-bit or 4-bit floats"),
        ("WFP8AFP8_DYNAMIC", "8-bit or 4-bit floats"),
        ("W8A8_TIMESTEP", "scales for each step of a diffusion model"),
        ("NF4", "a table of 4-bit values"),
    ],
)
def test_types(tmp_path: Path, kind: str, reason: str) -> None:
    """In the description, and as `quantize` without one."""
    advice = "quantise the float weights again with ModelSlim as one of W8A8, W8A8_DYNAMIC, W8A8_MIX, W8A16, W4A16"
    write(tmp_path)
    describe(tmp_path, **{f"{Q}.weight": kind})
    fails(tmp_path, ConfigError, str(tmp_path / NEW), f"{Q}.weight is '{kind}': {reason}", advice)
    (tmp_path / NEW).unlink()
    configure(tmp_path, quantize=kind.lower())
    fails(tmp_path, ConfigError, f"config.json: quantize is '{kind.lower()}', but only w8a8,", reason, advice)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"fa_quant_type": "FAQuant"}, "fa_quant_type is 'FAQuant': queries, keys and values are quantised"),
        ({"reduce_quant_type": "per_channel"}, "reduce_quant_type is 'per_channel': what ranks exchange"),
        ({"is_nzcasted": True}, "is_nzcasted is True: its weights are laid out"),
        ({"AtlasGMMPermute": True}, "AtlasGMMPermute is True: its experts' weights"),
        ({"kv_quant_type": "C4"}, "kv_quant_type is 'C4', but only C8"),
        ({"metadata": {"quarot": {"max_tp_size": 4}}}, "metadata has quarot: activations are to be rotated"),
        ({"optional": {"quarot": {"rotation_map": {}}}}, "optional has quarot: activations are to be rotated"),
        ({"version": "2.0.0"}, "version is '2.0.0', but only 0.0.0 and 1.0.0"),
        ({f"{Q}.div.mul_scale": "FLOAT"}, f"{Q}.div.mul_scale is of NonFusionSmoothQuant"),
        ({f"{Q}.linear.weight": "W8A16"}, f"{Q}.linear.weight is of NonFusionSmoothQuant"),
    ],
)
def test_forms(tmp_path: Path, entries: dict[str, Any], text: str) -> None:
    write(tmp_path)
    describe(tmp_path, **entries)
    fails(tmp_path, ConfigError, f"{tmp_path / NEW}: ", text)


@pytest.mark.parametrize("name", ["fa_quant_type", "reduce_quant_type"])
def test_forms_that_config_json_tells_of(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    configure(tmp_path, quantization_config={name: "FAQuant"})
    fails(tmp_path, ConfigError, f"config.json: {name} is 'FAQuant': ")


def test_dynamic_activations_with_groups(tmp_path: Path) -> None:
    written = write(tmp_path, "W8A8_DYNAMIC", "0.0.0")
    written.tensors[f"{Q}.weight_scale"] = torch.ones(8, 2)
    save(tmp_path, written, Form("w8a8_dynamic", every("W8A8_DYNAMIC")), {})
    fails(tmp_path, ConfigError, f"{Q}.weight is W8A8_DYNAMIC with scales for groups of 64 inputs", "as W8A16")


# ---------------------------------------------------------------------------------- description, config.json, weights


def test_quantize_without_a_description(tmp_path: Path) -> None:
    write(tmp_path, "W8A8_DYNAMIC", "0.0.0")
    (tmp_path / OLD.format("w8a8_dynamic")).rename(tmp_path / OLD.format("w8a16"))
    fails(
        tmp_path,
        ConfigError,
        "config.json says by quantize 'w8a8_dynamic' that the weights are ModelSlim's",
        f"has no {NEW} or {OLD.format('w8a8_dynamic')} or {OLD.format('w8a8')}, only {OLD.format('w8a16')}; copy",
    )


@pytest.mark.parametrize("name", ["quantization_config", "quantization"])
def test_settings_without_a_description(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / NEW).unlink()
    configure(tmp_path, **{name: {"group_size": 64}})
    fails(tmp_path, ConfigError, "says by quantization or quantization_config that the weights are", f"no {NEW}; copy")


def test_several_descriptions_without_quantize(tmp_path: Path) -> None:
    write(tmp_path, "W8A16", "0.0.0")
    configure(tmp_path, quantize=None)
    assert scheme_of(tmp_path).method == "w8a16"  # there is one only
    (tmp_path / OLD.format("w8a8")).write_text("{}")
    fails(tmp_path, ConfigError, f"{OLD.format('w8a16')}, {OLD.format('w8a8')}; quantize in config.json must say which")


@pytest.mark.parametrize("quantize", ["w8a9", 8, ["w8a8"], True])
def test_an_unknown_quantize(tmp_path: Path, quantize: object) -> None:
    write(tmp_path)
    configure(tmp_path, quantize=quantize)
    fails(tmp_path, ConfigError, f"config.json: quantize is {quantize!r}, but only w8a8, w8a8_dynamic")


def test_the_description_of_the_newer_saver_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "W8A16", "0.0.0")
    (tmp_path / NEW).write_text("[]")
    fails(tmp_path, CheckpointError, f"{NEW} holds a JSON list")


@pytest.mark.parametrize(
    ("quantize", "file"),
    [("w8a8_pdmix", "w8a8_mix"), ("w8a8_mix", "w8a8_pdmix"), ("w8a8_mix", "w8a8"), ("w8a8_dynamic", "w8a8")],
)
def test_descriptions_that_serve_for_other_words(tmp_path: Path, quantize: str, file: str) -> None:
    write(tmp_path, "W8A8_MIX", "0.0.0")
    (tmp_path / OLD.format("w8a8_mix")).rename(tmp_path / OLD.format(file))
    configure(tmp_path, quantize=quantize)
    assert scheme_of(tmp_path).method == {"w8a8_mix": "w8a8_pdmix"}.get(quantize, quantize)


def test_a_description_of_weights_that_are_floats(tmp_path: Path) -> None:
    write(tmp_path, "W8A16", "0.0.0")
    file = "quant_model_weight_w8a16.safetensors"
    (tmp_path / file).unlink()
    save_file(TENSORS, tmp_path / "model.safetensors")
    describe(tmp_path, **dict.fromkeys(f"{stem}.weight_{part}" for stem in (Q, K) for part in ("scale", "offset")))
    fails(tmp_path, CheckpointError, "describes 2 quantised weights, but in", "all of them are floats, as", "take away")


def test_a_description_without_weights(tmp_path: Path) -> None:
    write(tmp_path, "W8A16", "0.0.0")
    (tmp_path / "quant_model_weight_w8a16.safetensors").unlink()
    fails(tmp_path, CheckpointError, "holds no weights: none of", "quant_model_weight*.safetensors exists")
