"""GPTQ: quantize_config.json beside a config.json that has a quantization_config."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import CheckpointError, ConfigError
from atb_models.layers.storage import Storage
from tests.models.formats.checkpoints import check, golden, quantized_copy
from tests.models.formats.packing import gptq
from tests.models.formats.test_gptq import DECLARED, Q
from tests.models.quantized.reading import scheme_of

FILE = "quantize_config.json"


def write(folder: Path, own: dict[str, Any], beside: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": own}))
    (folder / FILE).write_text(json.dumps(beside))


@pytest.mark.parametrize("field", ["checkpoint_format", "format"])
def test_the_format_that_config_json_lacks(shared: Path, tmp_path: Path, field: str) -> None:
    own = DECLARED | {"sym": False}
    pack = partial(gptq, group=32, symmetric=False, version=2)
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, own, pack)
    (tmp_path / FILE).write_text(json.dumps(own | {field: "gptq_v2"}))
    check(tmp_path, expected)


def test_other_fields_that_config_json_lacks(tmp_path: Path) -> None:
    beside = {"bits": 8, "group_size": 64, "sym": False, "desc_act": True, "dynamic": {"-:.*q_proj": {}}}
    write(tmp_path, {"quant_method": "gptq", "bits": None}, beside)
    form = scheme_of(tmp_path).form  # type: ignore[attr-defined]
    assert (form.bits, form.group, form.symmetric, form.ordered) == (8, 64, False, True)
    write(tmp_path, {"quant_method": "gptq"}, beside | {"desc_act": False})
    assert scheme_of(tmp_path).storage(f"{Q}.weight") is None
    assert scheme_of(tmp_path).storage("model.layers.0.mlp.up_proj.weight") == Storage(8, 64, offset=True)


@pytest.mark.parametrize("name", ["GPTQ", "Gptq_V2"])
def test_names_of_formats_in_upper_case(tmp_path: Path, name: str) -> None:
    write(tmp_path, DECLARED | {"checkpoint_format": name}, {"quant_method": "GPTQ", "format": name.lower()})
    assert scheme_of(tmp_path).form.minus_one == (name == "GPTQ")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("own", "beside", "said"),
    [
        ({}, {"bits": 8}, ("bits is 4", "bits is 8")),
        ({}, {"group_size": 64}, ("group_size is 32", "group_size is 64")),
        ({}, {"sym": False}, ("sym is True", "sym is False")),
        ({}, {"desc_act": True}, ("desc_act is False", "desc_act is True")),
        (
            {"checkpoint_format": "gptq"},
            {"format": "gptq_v2"},
            ("checkpoint_format is 'gptq'", "format is 'gptq_v2'"),
        ),
        ({}, {"quant_method": "awq"}, ("quant_method is 'gptq'", "quant_method is 'awq'")),
    ],
)
def test_contradictions(tmp_path: Path, own: dict[str, Any], beside: dict[str, Any], said: tuple[str, str]) -> None:
    write(tmp_path, DECLARED | own, DECLARED | beside)
    here, there = f"{tmp_path / 'config.json'}: quantization_config", tmp_path / FILE
    message = f"{here}: {said[0]}, but {there}: {said[1]}; correct the one that is not of these weights"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        scheme_of(tmp_path)


def test_what_is_not_read_in_the_file(tmp_path: Path) -> None:
    """The message names both places, of which either may have the field."""
    write(tmp_path, DECLARED, {"checkpoint_format": "marlin"})
    place = re.escape(f"{tmp_path / 'config.json'}: quantization_config and {tmp_path / FILE}")
    with pytest.raises(ConfigError, match=f"^{place}: checkpoint_format is 'marlin', but only gptq, gptq_v2"):
        scheme_of(tmp_path)
    (tmp_path / FILE).write_text("[")
    with pytest.raises(CheckpointError, match=f"{FILE} is not valid JSON"):
        scheme_of(tmp_path)
