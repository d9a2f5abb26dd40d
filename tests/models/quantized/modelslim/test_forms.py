"""ModelSlim's weights in each form, read back to the floats that they stand for, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atb_models.layers.storage import Storage
from tests.models.quantized.modelslim.writer import INPUT_OFFSET, INPUT_SCALE, Form, every, quantized, save, write
from tests.models.quantized.reading import cuts, floats_of, opened, read, scheme_of

BF16, FP16 = torch.bfloat16, torch.float16
FORMS = {
    "w8a16": Form("w8a16", every("W8A16")),
    "w8a16_asymmetric": Form("w8a16", every("W8A16"), asymmetric=True),
    "w8a16_group": Form("w8a16", every("W8A16"), group=64, scale_dtype=BF16),
    "w8a16_new": Form("w8a16", every("W8A16"), version="1.0.0", scale_dtype=FP16, column=False),
    "dynamic": Form("w8a8_dynamic", every("W8A8_DYNAMIC"), scale_dtype=BF16),
    "dynamic_asymmetric": Form("w8a8_dynamic", every("W8A8_DYNAMIC"), asymmetric=True),
    "dynamic_new": Form("w8a8_dynamic", every("W8A8_DYNAMIC"), version="1.0.0"),
    "mix": Form("w8a8_mix", every("W8A8_MIX")),
    "mix_new": Form("w8a8_pdmix", every("W8A8_MIX"), version="1.0.0"),
    **{f"w4a16_{group}": Form("w4a16", every("W4A16"), group=group) for group in (0, 32, 64, 128)},
    **{f"w4a16_new_{group}": Form("w4a16", every("W4A16"), "1.0.0", group=group) for group in (0, 32, 64, 128, 256)},
    "w4a16_asymmetric": Form("w4a16", every("W4A16"), group=32, asymmetric=True),
    "w4a16_new_asymmetric": Form("w4a16", every("W4A16"), "1.0.0", group=64, asymmetric=True, scale_dtype=BF16),
}
STATIC = {
    f"{deq_scale}_{version}": Form("w8a8", every("W8A8"), version, deq_scale=deq_scale, input_dtype=dtype)
    for deq_scale, dtype in (("float32", BF16), ("int64", FP16), ("marked", torch.float32))
    for version in ("0.0.0", "1.0.0")
}
MODELS = ("deepseek", "qwen")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_floats_to_the_last_bit(shared: Path, tmp_path: Path, form: str, model: str) -> None:
    written = write(tmp_path, shared / "golden" / model, FORMS[form])
    with opened(tmp_path) as (scheme, source):
        kept = {name for name in source.names() if not name.endswith(("_scale", "_offset"))}
        assert kept == set(written.floats)
        for name, expected in written.floats.items():
            assert torch.equal(floats_of(scheme, source, name), expected.float()), name


@pytest.mark.parametrize("form", [*FORMS, *STATIC])
def test_any_slice(shared: Path, tmp_path: Path, form: str) -> None:
    """Of each shape of weight, and of what lies beside it."""
    write(tmp_path, shared / "golden" / "deepseek", {**FORMS, **STATIC}[form])
    stems = ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.experts.3.down_proj"]
    with opened(tmp_path) as (_, source):
        for name in sorted(source.names()):
            if not name.startswith(tuple(stems)) or "input" in name:
                continue
            dtype = {"weight": torch.int8, "quant_bias": torch.int32}.get(name.rpartition(".")[2], torch.float32)
            whole = read(source, name, dtype)
            for dim, size in enumerate(source.shape(name)):
                for start, stop in cuts(size):
                    cut = read(source, name, dtype, dim, start, stop)
                    assert torch.equal(cut, whole.narrow(dim, start, stop - start)), (name, dim, start, stop)


def test_targets_of_any_layout(shared: Path, tmp_path: Path) -> None:
    """A cut of a wider memory, and one that is transposed, for packed and for plain integers."""
    for form in ("w4a16_new_64", "w4a16_new_0", "w4a16_0", "w8a16"):
        folder, name = tmp_path / form, "model.layers.0.mlp.gate_proj.weight"
        write(folder, shared / "golden" / "deepseek", FORMS[form])
        with opened(folder) as (_, source):
            whole = read(source, name, torch.int8)
            wide, turned = torch.zeros(256, 131, dtype=torch.int8), torch.zeros(60, 256, dtype=torch.int8)
            source.read_into(name, None, 0, 0, wide[:, 1:-2])
            source.read_into(name, 1, 3, 63, turned.T)
        assert torch.equal(wide[:, 1:-2], whole) and not wide[:, 0].any() and not wide[:, -2:].any()
        assert torch.equal(turned.T, whole[:, 3:63])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", STATIC)
def test_static(shared: Path, tmp_path: Path, form: str, model: str) -> None:
    """What the products need; a float bias, weight_scale and weight_offset beside them are not presented."""
    written = write(tmp_path, shared / "golden" / model, STATIC[form])
    parts = ("weight", "weight_scale", "input_scale", "input_offset", "quant_bias")
    with opened(tmp_path) as (scheme, source):
        linears = [name for name in written.types if name.endswith("_proj.weight")]
        floats = {name for name in written.floats if not name.endswith(("_proj.weight", "_proj.bias"))}
        stems = [name.removesuffix(".weight") for name in linears]
        assert source.names() == floats | {f"{stem}.{part}" for stem in stems for part in parts}
        for stem in stems:
            assert scheme.storage(f"{stem}.weight") == Storage(8, activations="static")
            assert not scheme.has_bias(f"{stem}.weight")
            stored = {part: written.tensors.get(f"{stem}.{part}") for part in (*parts, "deq_scale")}
            scale = read(source, f"{stem}.weight_scale", torch.float32)
            assert torch.equal(read(source, f"{stem}.weight", torch.int8), stored["weight"])
            assert torch.equal(read(source, f"{stem}.quant_bias", torch.int32), stored["quant_bias"])
            assert read(source, f"{stem}.input_scale", torch.float32).tolist() == [INPUT_SCALE]
            assert read(source, f"{stem}.input_offset", torch.float32).tolist() == [INPUT_OFFSET]
            numbers = stored["weight"].float() * (scale / INPUT_SCALE)[:, None]
            assert torch.allclose(numbers, written.floats[f"{stem}.weight"], rtol=1e-6, atol=0)
            if stored["deq_scale"].dtype == torch.float32:
                assert torch.equal(scale, stored["deq_scale"])


def test_a_static_scale_has_the_same_bits_in_each_form(shared: Path, tmp_path: Path) -> None:
    scales = []
    for form in ("float32_0.0.0", "int64_0.0.0", "marked_1.0.0"):
        write(tmp_path / form, shared / "golden" / "deepseek", STATIC[form])
        with opened(tmp_path / form) as (_, source):
            scales.append(read(source, "model.layers.0.mlp.up_proj.weight_scale", torch.float32))
    assert torch.equal(scales[0], scales[1]) and torch.equal(scales[0], scales[2])


@pytest.mark.parametrize(
    ("form", "storage"),
    [
        ("w8a16", Storage(8)),
        ("w8a16_asymmetric", Storage(8, offset=True)),
        ("w8a16_group", Storage(8, group=64)),
        ("dynamic", Storage(8, activations="token")),
        ("dynamic_asymmetric", Storage(8, offset=True, activations="token")),
        ("mix", Storage(8, activations="token")),
        ("w4a16_0", Storage(4)),
        ("w4a16_new_0", Storage(4)),
        ("w4a16_new_128", Storage(4, group=128)),
        ("w4a16_asymmetric", Storage(4, group=32, offset=True)),
    ],
)
def test_storages(shared: Path, tmp_path: Path, form: str, storage: Storage) -> None:
    """By the description alone, too, which cannot tell whether there are offsets other than zero."""
    write(tmp_path, shared / "golden" / "deepseek", FORMS[form])
    down, router = "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.gate.weight"
    assert scheme_of(tmp_path).storage(down) == storage
    for name in (router, "model.layers.9.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"):
        assert scheme_of(tmp_path).storage(name) is None
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert scheme_of(tmp_path).storage(down) == Storage(storage.bits, storage.group, activations=storage.activations)
    assert scheme_of(tmp_path).storage(router) is None


def test_a_group_as_wide_as_a_row_is_none(shared: Path, tmp_path: Path) -> None:
    """Only the shape tells: such weights are packed along their inputs, although the model has a group_size."""
    written = write(tmp_path, shared / "golden" / "deepseek", FORMS["w4a16_new_128"])
    wide, narrow = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"
    assert [tuple(written.tensors[name].shape) for name in (wide, narrow)] == [(64, 256), (256, 64)]
    assert (scheme_of(tmp_path).storage(wide), scheme_of(tmp_path).storage(narrow)) == (Storage(4, 128), Storage(4))


def test_offsets_of_one_weight_are_kept_for_all(shared: Path, tmp_path: Path) -> None:
    """Parts of a merged map must be stored alike; a weight without offsets gets zeros."""
    written = write(tmp_path, shared / "golden" / "deepseek", FORMS["w8a16"])
    file = tmp_path / "quant_model_weight_w8a16.safetensors"
    tensors, stem = load_file(file), "model.layers.2.self_attn"
    tensors[f"{stem}.k_proj.weight_offset"][5] = 2
    save_file(tensors, file)
    with opened(tmp_path) as (scheme, source):
        q, k = (floats_of(scheme, source, f"{stem}.{role}_proj.weight") for role in "qk")
        assert scheme.storage(f"{stem}.q_proj.weight") == Storage(8, offset=True)
    assert torch.equal(q, written.floats[f"{stem}.q_proj.weight"])
    row = (tensors[f"{stem}.k_proj.weight"][5].float() - 2) * tensors[f"{stem}.k_proj.weight_scale"][5]
    assert torch.equal(k[5], row) and torch.equal(k[6], written.floats[f"{stem}.k_proj.weight"][6])


def test_symmetric_weights_need_no_offsets(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "deepseek"
    written = quantized(load_file(golden / "model.safetensors"), FORMS["dynamic"])
    for name in [name for name in written.tensors if name.endswith("weight_offset")]:
        del written.tensors[name], written.types[name]
    save(tmp_path, written, FORMS["dynamic"], {})
    with opened(tmp_path) as (scheme, source):
        name = "model.layers.1.mlp.experts.0.up_proj.weight"
        assert torch.equal(floats_of(scheme, source, name), written.floats[name])


@pytest.mark.parametrize(
    ("form", "name", "method"),
    [
        ("w8a16", "ModelSlim, w8a16", "w8a16"),
        ("dynamic_new", "ModelSlim, w8a8_dynamic", "w8a8_dynamic"),
        ("mix", "ModelSlim, w8a8_pdmix", "w8a8_pdmix"),
        ("mix_new", "ModelSlim, w8a8_pdmix", "w8a8_pdmix"),
        ("w4a16_new_32", "ModelSlim, w4a16", "w4a16"),
    ],
)
def test_names(shared: Path, tmp_path: Path, form: str, name: str, method: str) -> None:
    write(tmp_path, shared / "golden" / "deepseek", FORMS[form])
    assert (scheme_of(tmp_path).name, scheme_of(tmp_path).method) == (name, method)
