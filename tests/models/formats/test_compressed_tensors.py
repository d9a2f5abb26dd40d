"""compressed-tensors: plain and packed integers, 8-bit floats, groups of maps, int8 activations."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atb_models.layers.storage import Storage
from tests.models.formats.checkpoints import check, edit, golden, is_linear, quantized_copy
from tests.models.formats.packing import Packed, compressed, float8
from tests.models.formats.test_gptq import shuffled
from tests.models.quantized.reading import floats_of, opened, read, scheme_of

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.experts.0.down_proj"
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


def weights(bits: int = 4, group: int | None = 32, **more: Any) -> dict[str, Any]:
    """group: None one scale for each output, 0 for all."""
    strategy = "group" if group else "channel" if group is None else "tensor"
    fields = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": strategy, "group_size": group or None}
    return fields | {"dynamic": False, "observer": "minmax", "observer_kwargs": {}} | more


def declared(format: str, *groups: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Of llm-compressor's usual form. groups: with weights, and targets where they are not all linear maps."""
    common = {"targets": ["Linear"], "input_activations": None, "output_activations": None}
    named = {f"group_{i}": common | group for i, group in enumerate(groups)}
    return {
        "quant_method": "compressed-tensors", "format": format, "config_groups": named, "ignore": ["lm_head"],
        "kv_cache_scheme": None, "quantization_status": "compressed", "global_compression_ratio": 1.5,
    } | more  # fmt: skip


# ---------------------------------------------------------------------------------------------------- weights alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed(shared: Path, tmp_path: Path, bits: int, group: int, symmetric: bool, dtype: torch.dtype) -> None:
    pack = partial(compressed, bits=bits, group=group, packed=True, symmetric=symmetric, dtype=dtype)
    form = weights(bits, None if group == -1 else group, symmetric=symmetric)
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared("pack-quantized", {"weights": form}), pack)
    scheme = check(tmp_path, expected)
    wanted = Storage(bits, None if group == -1 else group, offset=not symmetric)  # type: ignore[arg-type]
    assert scheme.storage(f"{Q}.weight") == scheme.storage(f"{DOWN}.weight") == wanted
    assert scheme.storage("model.layers.1.mlp.gate.weight") is None and scheme.storage("lm_head.weight") is None
    width = "" if group == -1 else " in groups of 32"
    assert (scheme.name, scheme.method) == (f"compressed-tensors, {bits} bits{width}", f"w{bits}a16")


@pytest.mark.parametrize("format", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize(("group", "symmetric"), [(64, True), (64, False), (-1, True), (-1, False), (0, True)])
@pytest.mark.parametrize("bits", [4, 8])
def test_plain(shared: Path, tmp_path: Path, bits: int, group: int, symmetric: bool, format: str) -> None:
    """One number in each int8; one scale for a whole weight is that of each output."""
    form = weights(bits, None if group == -1 else group, symmetric=symmetric)
    pack = partial(compressed, bits=bits, group=group, packed=False, symmetric=symmetric)
    scheme = check(
        tmp_path,
        quantized_copy(golden(shared, "deepseek"), tmp_path, declared(format, {"weights": form}), pack),
    )
    assert scheme.storage(f"{Q}.weight") == Storage(bits, max(group, 0) or None, offset=not symmetric)  # type: ignore[arg-type]


def test_widths_that_fill_no_word(tmp_path: Path) -> None:
    """37 inputs and 19 outputs of 4 bits: the last words are filled up with zeros."""
    tensors, expected = compressed(torch.randn(19, 37), 4, -1, packed=True, symmetric=False)
    write(tmp_path, {f"{Q}.{part}": tensor for part, tensor in tensors.items()}, weights(4, None, symmetric=False))
    assert tensors["weight_packed"].shape == (19, 5) and tensors["weight_zero_point"].shape == (3, 1)
    with opened(tmp_path) as (scheme, source):
        assert torch.equal(floats_of(scheme, source, f"{Q}.weight"), expected)
        whole = read(source, f"{Q}.weight", torch.int8)
        assert torch.equal(read(source, f"{Q}.weight", torch.int8, 1, 30, 37), whole[:, 30:])


def write(folder: Path, tensors: dict[str, Tensor], form: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors")
    config = {"quantization_config": declared("pack-quantized", {"weights": form})}
    (folder / "config.json").write_text(json.dumps(config))


def test_numbers_by_hand(tmp_path: Path) -> None:
    tensors = {
        "weight_packed": torch.tensor([[0x76543210], [-1]], dtype=torch.int32),
        "weight_scale": torch.tensor([[0.5, 1.0], [2.0, 4.0]]),
        "weight_shape": torch.tensor([2, 8], dtype=torch.int32),
        "weight_zero_point": torch.tensor([[0x0000003C, 0x000000F8]], dtype=torch.int32),
    }
    write(tmp_path, {f"{Q}.{part}": tensor for part, tensor in tensors.items()}, weights(4, 4, symmetric=False))
    with opened(tmp_path) as (_, source):
        assert read(source, f"{Q}.weight", torch.int8).tolist() == [[-8, -7, -6, -5, -4, -3, -2, -1], [7] * 8]
        assert read(source, f"{Q}.weight_offset", torch.float32).tolist() == [[4, 0], [-5, 7]]
        assert read(source, f"{Q}.weight_scale", torch.float32).tolist() == [[0.5, 1.0], [2.0, 4.0]]


def test_zero_points_of_symmetric_weights(shared: Path, tmp_path: Path) -> None:
    """Some versions wrote them: zeros."""
    form = declared("int-quantized", {"weights": weights(8, None), "input_activations": TOKEN})
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, form, partial(compressed, bits=8, packed=False))

    def add(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            tensors[name.replace("scale", "zero_point")] = torch.zeros(tensors[name].shape, dtype=torch.int8)

    edit(tmp_path, add)
    check(tmp_path, expected)


@pytest.mark.parametrize("group", ["channel", "tensor", "block"])
def test_float8(shared: Path, tmp_path: Path, group: str, caplog: pytest.LogCaptureFixture) -> None:
    form = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": group, "dynamic": False}
    block = {"channel": (1, 0), "tensor": (0, 0), "block": (48, 32)}[group]
    form |= {"block_structure": list(block)} if group == "block" else {}
    inputs = TOKEN | {"type": "float"}
    pack = partial(float8, block=block, scale="weight_scale")
    config = declared("float-quantized", {"weights": form, "input_activations": inputs})
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, config, pack)
    if group == "tensor":
        edit(tmp_path, lambda x: x.update({n: t.view(1) for n, t in x.items() if n.endswith("weight_scale")}))
    with caplog.at_level(logging.INFO):
        scheme = check(tmp_path, expected)
    assert scheme.storage(f"{Q}.weight") is None and scheme.method == "float8"
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "weights of 8-bit floats become floats" in said and "round to 8-bit floats stay floats" in said


def test_integers_by_block_become_floats(shared: Path, tmp_path: Path) -> None:
    def pack(weight: Tensor) -> Packed:
        numbers, _ = float8(weight, (48, 32), "weight_scale")
        whole = numbers["weight"].float().div(4).round().to(torch.int8)
        scale = numbers["weight_scale"]
        spread = scale.repeat_interleave(48, 0).repeat_interleave(32, 1)[: len(weight), : weight.shape[1]]
        return {"weight": whole, "weight_scale": scale}, whole.float() * spread

    form = weights(8, None, strategy="block", block_structure="48x32")
    expected = quantized_copy(
        golden(shared, "deepseek"), tmp_path, declared("naive-quantized", {"weights": form}), pack
    )
    assert check(tmp_path, expected).storage(f"{Q}.weight") is None


# ------------------------------------------------------------------------------------------------ orders of inputs


@pytest.mark.parametrize("order", ["group", "dynamic"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scattered_groups_become_floats(
    shared: Path, tmp_path: Path, symmetric: bool, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    def pack(weight: Tensor) -> Packed:
        return compressed(weight, 4, 32, packed=True, symmetric=symmetric, order=shuffled(weight, 32))

    form = weights(symmetric=symmetric, actorder=order)
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared("pack-quantized", {"weights": form}), pack)
    with caplog.at_level(logging.WARNING):
        assert check(tmp_path, expected).storage(f"{Q}.weight") is None
    said = [record.getMessage() for record in caplog.records if "actorder" in record.getMessage()]
    assert len(said) == 1 and f"the groups of {sum(map(is_linear, expected))} linear maps are no runs" in said[0]
    (tmp_path / "model.safetensors").unlink()
    assert scheme_of(tmp_path).storage(f"{Q}.weight") is None


@pytest.mark.parametrize("order", ["static", "weight", "group"])
@pytest.mark.parametrize("filled", [True, False])
def test_an_order_that_is_a_plain_one_keeps_integers(shared: Path, tmp_path: Path, order: str, filled: bool) -> None:
    """A tensor of -1 was never filled."""

    def pack(weight: Tensor) -> Packed:
        tensors, floats = compressed(weight, 4, 32, packed=True)
        inputs = torch.arange(weight.shape[1], dtype=torch.int32) // 32
        return tensors | {"weight_g_idx": inputs if filled else torch.full_like(inputs, -1)}, floats

    form = declared("pack-quantized", {"weights": weights(actorder=order)})
    scheme = check(tmp_path, quantized_copy(golden(shared, "deepseek"), tmp_path, form, pack))
    assert scheme.storage(f"{Q}.weight") == Storage(4, 32)


# --------------------------------------------------------------------------------------------- which maps, and how


def test_groups_of_maps_and_what_is_ignored(shared: Path, tmp_path: Path) -> None:
    """A whole name goes before a pattern, a pattern before a class; patterns are matched from the start of names."""
    groups = (
        {"weights": weights(4, 32)},
        {"weights": weights(8, 64), "targets": [r"re:.*self_attn\.(q|k)_proj$"], "format": "int-quantized"},
        {"weights": weights(8, None), "targets": [Q], "input_activations": TOKEN, "format": "int-quantized"},
    )
    ignore = ["lm_head", "re:.*layers.2.mlp.*", "model.layers.3.self_attn.o_proj", "re:self_attn.v_proj"]
    form = declared("mixed-precision", *groups, ignore=ignore)
    form["config_groups"]["group_0"]["format"] = "pack-quantized"
    others: dict[str, Any] = {}
    for name in load_file(golden(shared, "deepseek") / "model.safetensors"):
        if not is_linear(name):
            continue
        if ".layers.2.mlp." in name or name == "model.layers.3.self_attn.o_proj.weight":
            others[name] = lambda _, weight: None
        elif name == f"{Q}.weight":
            others[name] = lambda _, weight: compressed(weight, 8, packed=False)
        elif ".q_proj" in name or ".k_proj" in name:
            others[name] = lambda _, weight: compressed(weight, 8, 64, packed=False)
    others = {name.replace(".", "__"): pack for name, pack in others.items()}
    pack = partial(compressed, bits=4, group=32, packed=True)
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, form, pack, **others)
    scheme = check(tmp_path, expected)
    for module, storage in {
        Q: Storage(8, activations="token"),
        "model.layers.0.self_attn.q_proj": Storage(8, 64),
        "model.layers.1.self_attn.k_proj": Storage(8, 64),
        "model.layers.1.self_attn.v_proj": Storage(4, 32),
        "model.layers.3.self_attn.o_proj": None,
        "model.layers.2.mlp.experts.3.up_proj": None,
        "model.layers.2.self_attn.o_proj": Storage(4, 32),
    }.items():
        assert scheme.storage(f"{module}.weight") == storage, module
    assert scheme.method == "mixed"
    assert scheme.name == (
        "compressed-tensors, 4 bits in groups of 32 and 8 bits in groups of 64"
        " and 8 bits with int8 activations by token"
    )


def test_an_embedding_head_and_router_that_are_packed_become_floats(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def pack(name: str, weight: Tensor) -> Packed:
        return compressed(weight, 4, 32, packed=True)

    names = ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight")
    form = declared("pack-quantized", {"weights": weights(), "targets": ["Linear", "Embedding"]}, ignore=[])
    expected = quantized_copy(
        golden(shared, "deepseek"),
        tmp_path,
        form,
        partial(compressed, bits=4, group=32, packed=True),
        **{name.replace(".", "__"): pack for name in names},
    )
    with caplog.at_level(logging.INFO):
        scheme = check(tmp_path, expected)
    assert [scheme.storage(name) for name in names] == [None] * 3
    said = "3 quantised weights, held as floats: embeddings, heads and routers are always floats here"
    assert caplog.text.count(f"{said}: lm_head.weight, model.embed_tokens.weight, {names[2]}") == 1


def test_a_cache_that_is_quantised_elsewhere(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    form = declared("pack-quantized", {"weights": weights()}, kv_cache_scheme={"num_bits": 8, "type": "float"})
    pack = partial(compressed, bits=4, group=32, packed=True)
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, form, pack)
    names = ("self_attn.k_scale", "self_attn.v_scale", "self_attn.k_proj.output_scale")
    edit(tmp_path, lambda x: x.update({f"model.layers.0.{name}": torch.ones(1) for name in names}))
    with caplog.at_level(logging.WARNING):
        check(tmp_path, expected)
    said = [record.getMessage() for record in caplog.records if "kv_cache_scheme" in record.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("kv_cache_scheme is not used: see --kv_dtype for how keys and values are kept")


# ----------------------------------------------------------------------------------------------- int8 activations


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_activations_by_token(shared: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    form = declared("int-quantized", {"weights": weights(8, None), "input_activations": TOKEN})
    pack = partial(compressed, bits=8, packed=False, dtype=dtype)
    scheme = check(tmp_path, quantized_copy(golden(shared, "qwen"), tmp_path, form, pack))
    assert scheme.storage(f"{Q}.weight") == Storage(8, activations="token")
    assert (scheme.method, scheme.name) == (
        "w8a8_dynamic",
        "compressed-tensors, 8 bits with int8 activations by token",
    )
    assert not scheme.has_bias(f"{Q}.weight"), "config.json tells of it"


@pytest.mark.parametrize("zero", [None, -7, 19])
def test_static_activations(shared: Path, tmp_path: Path, zero: int | None) -> None:
    """x8 = round(x / input_scale + zero point) meets the weight in integers; an offset is taken out of whole rows."""
    inputs = STATIC | {"symmetric": zero is None}
    form = declared("int-quantized", {"weights": weights(8, None), "input_activations": inputs})
    pack = partial(compressed, bits=8, packed=False)
    expected = quantized_copy(golden(shared, "qwen"), tmp_path, form, pack)

    def add(tensors: dict[str, Tensor]) -> None:
        for i, name in enumerate([name for name in tensors if name.endswith("weight_scale")]):
            tensors[name.replace("weight", "input")] = torch.tensor([0.01 * (i + 1)], dtype=torch.bfloat16)
            if zero is not None:
                offset = torch.tensor([zero], dtype=torch.int8)
                tensors[name.replace("weight_scale", "input_zero_point")] = offset

    edit(tmp_path, add)
    stored = load_file(tmp_path / "model.safetensors")
    with opened(tmp_path) as (scheme, source):
        assert (scheme.method, scheme.storage(f"{Q}.weight")) == ("w8a8", Storage(8, activations="static"))
        for name in filter(is_linear, expected):
            module = name.removesuffix(".weight")
            values, scale = stored[name], stored[f"{module}.input_scale"].float()
            assert torch.equal(read(source, name, torch.int8), values)
            assert torch.equal(read(source, f"{module}.input_scale", torch.float32), scale)
            assert read(source, f"{module}.input_offset", torch.float32).tolist() == [zero or 0]
            sums = stored[f"{name}_scale"].float().flatten() * scale
            assert torch.equal(read(source, f"{name}_scale", torch.float32), sums)
            bias = read(source, f"{module}.quant_bias", torch.int32)
            assert bias.tolist() == [-(zero or 0) * sum(row) for row in values.tolist()]
            assert torch.equal(read(source, f"{module}.quant_bias", torch.int32, 0, 5, 31), bias[5:31])
        assert scheme.has_bias(f"{Q}.weight") and not scheme.has_bias(f"{DOWN}.weight"), "a float beside the sums"
        assert f"{Q}.bias" in source.names() and not {f"{Q}.input_zero_point"} & source.names()
