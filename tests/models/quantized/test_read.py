"""Which format a folder has, and the refusal of all others by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atb_models.errors import CheckpointError, ConfigError
from atb_models.models.quantized import read
from atb_models.models.quantized.declaration import Declaration
from atb_models.models.quantized.read import FORMATS, read_scheme
from tests.models.quantized.modelslim.small import write


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None, "quantize": None, "quantization": {}, "compression_config": {}},
        {"quantize": "", "quantization_config": {}},
    ],
)
def test_floats(tmp_path: Path, config: dict[str, Any]) -> None:
    assert read_scheme(tmp_path, config) is None


REFUSED = {
    "bitsandbytes": "transformers makes floats of it: model.dequantize(), then save_pretrained()",
    "mxfp4": "Mxfp4Config(dequantize=True)",
    "gguf": "from_pretrained(folder, gguf_file=name)",
    "hqq": "its layers have dequantize()",
    "quanto": "its layers have dequantize()",
    "torchao": "its layers have dequantize()",
    "auto-round": "format auto_gptq or auto_awq",
    "intel/auto-round": "format auto_gptq or auto_awq",
    "higgs": "model.dequantize()",
    "mlx": "mlx_lm.convert --dequantize",
}
UNKNOWN = ("quark", "aqlm", "eetq", "vptq", "bitnet", "spqr", "modelopt", "exl2", "some_new_one", "")


@pytest.mark.parametrize("method", [*REFUSED, *UNKNOWN])
def test_other_methods_are_refused(tmp_path: Path, method: str) -> None:
    """By the word that config.json has, with what makes floats of it, or else the way back to the floats."""
    config = {"quantization_config": {"quant_method": method, "bits": 4}}
    with pytest.raises(ConfigError) as failure:
        read_scheme(tmp_path, config)
    message = str(failure.value)
    readable = ", ".join((*sorted(FORMATS), "ModelSlim"))
    place = f"{tmp_path / 'config.json'}: quantization_config: quant_method is {method.replace('_', '-')!r}"
    assert message.startswith(f"{place}, but only {readable} can be read; ")
    assert REFUSED.get(method, "take the float weights that it was made from") in message
    assert message.endswith("(--quantize w8a16 stores floats as int8 while they are loaded)")


def test_formats_that_name_no_method(tmp_path: Path) -> None:
    """bitsandbytes by its switches, MLX by its numbers, in the field of either name."""
    for fields, method in (({"load_in_8bit": True}, "bitsandbytes"), ({"group_size": 64, "bits": 4}, "mlx")):
        with pytest.raises(ConfigError, match=f"quantization_config: quant_method is '{method}', but only"):
            read_scheme(tmp_path, {"quantization_config": fields})
    with pytest.raises(ConfigError, match="quantization: quant_method is 'mlx', but only"):
        read_scheme(tmp_path, {"quantization": {"group_size": 64, "bits": 4}})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"quantization_config": {"q_group": 3}}, "has no quant_method, only q_group: the format is"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq', but must be null or an object"),
        ({"compression_config": 3}, "compression_config is 3, but must be null or an object"),
        ({"quantization_config": {"quant_method": 4}}, "quant_method is 4, but must be the name of a format"),
        ({"quantization_config": {"quant_method": "quark"}, "quantize": "w8a8"}, "quantize is 'w8a8', which is for"),
    ],
)
def test_what_cannot_be_understood(tmp_path: Path, config: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_scheme(tmp_path, config)


@pytest.mark.parametrize(
    ("place", "word", "method"),
    [
        ("quantization_config", "My_Own", "my-own"),
        ("compression_config", "MINE", "mine"),
        ("quantize_config.json", "Mine", "mine"),
        ("compression_config", None, "compressed-tensors"),
        ("quantize_config.json", None, "gptq"),
        ("quant_config.json", None, "awq"),
    ],
)
def test_a_format_gets_what_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, method: str, word: str | None
) -> None:
    """From config.json or from a file of its own, by a method that it names or by the usual one of that place."""
    fields = {"bits": 4, "version": 7} | ({} if word is None else {"quant_method": word})
    config: dict[str, Any] = {"hidden_size": 3}
    if place.endswith(".json"):
        (tmp_path / place).write_text(json.dumps(fields))
        shown = str(tmp_path / place)
    else:
        config[place], shown = fields, f"{tmp_path / 'config.json'}: {place}"
    made = []
    monkeypatch.setattr(read, "FORMATS", {method: lambda declared: made.append(declared) or "the scheme"})
    assert read_scheme(tmp_path, config) == "the scheme"
    assert made == [Declaration(tmp_path, config, {**fields, "quant_method": method}, shown)]


def test_config_json_comes_before_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="quantization_config: quant_method is 'quark'"):
        read_scheme(tmp_path, {"quantization_config": {"quant_method": "quark"}})


def test_a_damaged_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="quantize_config.json is not valid JSON"):
        read_scheme(tmp_path, {})
    (tmp_path / "quantize_config.json").write_text("{" + " " * (1 << 20) + "}")
    with pytest.raises(CheckpointError, match="but at most 1048576 are read"):
        read_scheme(tmp_path, {})


@pytest.mark.parametrize("word", ["ascend", "modelslim", "Ascend"])
def test_names_of_other_engines_for_modelslim(tmp_path: Path, word: str) -> None:
    write(tmp_path)
    scheme = read_scheme(tmp_path, {"quantization_config": {"quant_method": word}})
    assert scheme is not None and scheme.name == "ModelSlim, w8a16"
    with pytest.raises(ConfigError, match=r"has no quant_model_description\.json; copy the file"):
        read_scheme(tmp_path / "empty", {"quantization_config": {"quant_method": word}})


def test_reading_what_is_declared_needs_no_torch(tmp_path: Path) -> None:
    """The launcher reads configurations before torch is there."""
    write(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    code = f"""
import sys
from pathlib import Path
from atb_models.models.quantized.read import read_scheme
scheme = read_scheme(Path({str(tmp_path)!r}), {{}})
print(scheme.storage("model.layers.0.self_attn.q_proj.weight"), "torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "Storage(bits=8, group=None, offset=False, activations='float') False\n"
