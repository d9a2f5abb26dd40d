"""ModelSlim's models of several types, their norms with biases, and what lies beside the weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from atb_models.errors import ConfigError
from atb_models.layers.storage import Storage
from atb_models.models.weights.checkpoint import Checkpoint
from tests.models.quantized.modelslim.writer import Form, Written, every, quantized, save
from tests.models.quantized.reading import floats_of, opened, read, scheme_of

LAYER = "model.layers.1"
NORM, POST = f"{LAYER}.input_layernorm", f"{LAYER}.post_attention_layernorm"


def usual_recipe(name: str) -> str | None:
    """Attention static, experts dynamic, the first layer and the down projections of shared experts floats."""
    if not name.endswith("_proj.weight") or name.startswith("model.layers.0.") or "shared_experts.down" in name:
        return None
    return "W8A8" if "self_attn" in name else "W8A8_DYNAMIC"


def write(
    folder: Path,
    shared: Path,
    form: Form,
    change: Callable[[Written], object] = lambda written: None,
    model: str = "deepseek",
    config: dict[str, Any] | None = None,
    **globals_: Any,
) -> Written:
    """The golden checkpoint in that form, changed before it is saved. globals_: further entries of the description."""
    golden = shared / "golden" / model
    written = quantized(load_file(golden / "model.safetensors"), form)
    change(written)
    save(folder, written, form, {**json.loads((golden / "config.json").read_text()), **(config or {})}, **globals_)
    return written


@pytest.mark.parametrize("version", ["0.0.0", "1.0.0"])
def test_each_weight_has_its_own_type(shared: Path, tmp_path: Path, version: str) -> None:
    """Whatever the type is that the description has for the model."""
    written = write(tmp_path, shared, Form("w8a8_dynamic", usual_recipe, version), model_quant_type="W8A16")
    storages = {"W8A8": Storage(8, activations="static"), "W8A8_DYNAMIC": Storage(8, activations="token")}
    with opened(tmp_path) as (scheme, source):
        for name, kind in written.types.items():
            if name.endswith(".weight"):
                assert scheme.storage(name) == storages.get(kind), name
                if kind != "W8A8":
                    assert torch.equal(floats_of(scheme, source, name), written.floats[name].float()), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_of_floats_in_spite_of_its_type(shared: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """It is a float; what the description tells of beside it need not be there, and is not read if it is."""
    name, kept = f"{LAYER}.self_attn.o_proj.weight", f"{LAYER}.self_attn.q_proj"
    originals = load_file(shared / "golden" / "deepseek" / "model.safetensors")

    def fall_back(written: Written) -> None:
        for weight in (name, f"{kept}.weight"):
            written.tensors[weight] = originals[weight].to(dtype)
        del written.tensors[f"{LAYER}.self_attn.o_proj.weight_scale"]

    write(tmp_path, shared, Form("w8a16", every("W8A16")), fall_back)
    with opened(tmp_path) as (scheme, source):
        assert scheme.storage(name) is None and scheme.storage(f"{kept}.weight") is None
        assert scheme.storage(f"{LAYER}.self_attn.k_proj.weight") == Storage(8)
        assert torch.equal(floats_of(scheme, source, name), originals[name].to(dtype).float())
        assert not {f"{kept}.weight_scale", f"{kept}.weight_offset"} & source.names()


@pytest.mark.parametrize(("quantize", "activations"), [("w8a8_pdmix", "token"), ("w8a8", "static")])
def test_the_description_of_w8a8_weights_serves_for_a_mixed_model(
    shared: Path, tmp_path: Path, quantize: str, activations: str
) -> None:
    """Both sets of scales are there; only config.json tells that prompts are to be dynamic."""
    write(tmp_path, shared, Form("w8a8", every("W8A8")))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantize": quantize}))
    storage = scheme_of(tmp_path).storage(f"{LAYER}.self_attn.q_proj.weight")
    assert storage is not None and storage.activations == activations


def test_the_description_of_w8a8_weights_serves_for_a_dynamic_model(shared: Path, tmp_path: Path) -> None:
    def described_as_static(written: Written) -> None:
        for name, kind in written.types.items():
            written.types[name] = "W8A8" if kind == "W8A8_DYNAMIC" else kind

    written = write(tmp_path, shared, Form("w8a8_dynamic", every("W8A8_DYNAMIC")), described_as_static)
    (tmp_path / "quant_model_description_w8a8_dynamic.json").rename(tmp_path / "quant_model_description_w8a8.json")
    with opened(tmp_path) as (scheme, source):
        name = f"{LAYER}.self_attn.q_proj.weight"
        assert scheme.storage(name) == Storage(8, activations="token")
        assert torch.equal(floats_of(scheme, source, name), written.floats[name])


def test_the_time_to_open_grows_as_the_number_of_tensors(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of all names is not made for each weight."""
    asked: list[int] = []
    names = Checkpoint.names
    monkeypatch.setattr(Checkpoint, "names", lambda checkpoint: asked.append(1) or names(checkpoint))
    write(tmp_path, shared, Form("w8a8_dynamic", usual_recipe))
    with opened(tmp_path) as (scheme, source):
        assert scheme.storage(f"{LAYER}.self_attn.q_proj.weight") and len(source.names()) > 300
    assert len(asked) < 10


# ------------------------------------------------------------------------------------------------------------- biases


def test_a_bias_that_config_json_does_not_tell_of(shared: Path, tmp_path: Path) -> None:
    bias = torch.linspace(-1, 1, 128)

    def add(written: Written) -> None:
        written.add("FLOAT", **{f"{LAYER}.self_attn.q_proj.bias": bias, f"{LAYER}.self_attn.o_proj.bias": bias})

    types = {"q_proj": "W8A8_DYNAMIC", "o_proj": "W8A8"}
    form = Form("w8a8_dynamic", lambda name: types.get(name.split(".")[-2]) if "layers.1" in name else None, "1.0.0")
    write(tmp_path, shared, form, add)
    with opened(tmp_path) as (scheme, source):
        assert scheme.has_bias(f"{LAYER}.self_attn.q_proj.weight")
        assert not scheme.has_bias(f"{LAYER}.self_attn.k_proj.weight")
        assert torch.equal(read(source, f"{LAYER}.self_attn.q_proj.bias", torch.float32), bias)
        # of static activations: quant_bias holds it
        assert not scheme.has_bias(f"{LAYER}.self_attn.o_proj.weight")
        assert f"{LAYER}.self_attn.o_proj.bias" not in source.names()


def of_attention(name: str) -> str | None:
    return "W8A8_DYNAMIC" if name.startswith(f"{LAYER}.self_attn.") else None


def add_norm(written: Written, prefix: str) -> None:
    """The changed norm, under this prefix."""
    kind = "W8A8_DYNAMIC" if "module" in prefix else "FLOAT"
    weight, bias = torch.linspace(0.5, 2, 128), torch.linspace(-1, 1, 128)
    written.add(kind, **{f"{prefix}.weight": weight, f"{prefix}.bias": bias})


@pytest.mark.parametrize("prefixes", [(NORM,), (f"{NORM}.module",), (NORM, f"{NORM}.module")])
def test_a_norm_with_a_bias(shared: Path, tmp_path: Path, prefixes: tuple[str, ...]) -> None:
    """The newer saver's, the older one's beside the norm as it was, and the older one's in both forms."""

    def add(written: Written) -> None:
        for prefix in prefixes:
            add_norm(written, prefix)

    written = write(tmp_path, shared, Form("w8a8_dynamic", of_attention), add)
    weight, bias = (written.tensors[f"{prefixes[-1]}.{part}"] for part in ("weight", "bias"))
    with opened(tmp_path) as (scheme, source):
        assert scheme.has_bias(f"{NORM}.weight") and not scheme.has_bias(f"{POST}.weight")
        assert torch.equal(read(source, f"{NORM}.weight", torch.float32), weight)
        assert torch.equal(read(source, f"{NORM}.bias", torch.float32), bias)
        assert not any("module" in name for name in source.names())


def test_a_norm_whose_linear_maps_stayed_floats_is_as_it_was(shared: Path, tmp_path: Path) -> None:
    written = write(
        tmp_path, shared, Form("w8a8_dynamic", of_attention), lambda written: add_norm(written, f"{POST}.module")
    )
    with opened(tmp_path) as (scheme, source):
        assert not scheme.has_bias(f"{POST}.weight") and f"{POST}.bias" not in source.names()
        assert torch.equal(read(source, f"{POST}.weight", torch.bfloat16), written.floats[f"{POST}.weight"])


def test_a_norm_that_feeds_floats_and_integers_is_refused(shared: Path, tmp_path: Path) -> None:
    """The router behind it is a float, and was made for the norm as it was."""
    form = Form("w8a8_dynamic", every("W8A8_DYNAMIC"))
    write(tmp_path, shared, form, lambda written: add_norm(written, f"{POST}.module"))
    message = f"{POST} feeds {LAYER}.mlp.gate.weight, which is floats, and {LAYER}.mlp.experts.0.gate_proj.weight"
    with pytest.raises(ConfigError, match=message):
        scheme_of(tmp_path).has_bias(f"{POST}.weight")
    with pytest.raises(ConfigError, match=message), opened(tmp_path):
        pass


# ------------------------------------------------------------------------------------------------------ int8 KV cache


@pytest.mark.parametrize("entry", [{"kv_quant_type": "C8"}, {"kv_cache_type": "KV8"}, {}])
def test_scales_of_a_kv_cache(
    shared: Path, tmp_path: Path, entry: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """They are presented, with one notice, and a model loads beside them."""
    names = [f"{LAYER}.self_attn.{role}_proj.kv_cache_{part}" for role in "kv" for part in ("scale", "offset")]
    scales = {name: torch.linspace(0.1, 1, 128) * (place + 1) for place, name in enumerate(names)}
    form = Form("w8a8", every("W8A8"), "1.0.0")
    write(tmp_path, shared, form, lambda written: written.add("C8", **scales), **entry)
    assert scheme_of(tmp_path).kv_scales
    with caplog.at_level(logging.WARNING), opened(tmp_path) as (_, source):
        assert [torch.equal(read(source, name, torch.float32), scales[name]) for name in names] == [True] * 4
    listing = tmp_path / "quant_model_weight_w8a8.safetensors.index.json"
    assert [record.message for record in caplog.records] == [
        f"{listing} has scales of an int8 KV cache, which are not used"
    ]


def test_no_scales_of_a_kv_cache(shared: Path, tmp_path: Path) -> None:
    write(tmp_path, shared, Form("w8a8", every("W8A8")))
    assert not scheme_of(tmp_path).kv_scales
