"""AWQ: the order within a word, zero points as they are, which maps are left out, and what does not fit."""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from atb_models.errors import CheckpointError, ConfigError
from atb_models.layers.storage import Storage
from tests.models.formats.checkpoints import check, edit, golden, is_linear, quantized_copy
from tests.models.formats.packing import awq
from tests.models.quantized.reading import floats_of, opened, read, scheme_of

Q = "model.layers.1.self_attn.q_proj"
DENSE_GATE = "model.layers.0.mlp.gate_proj"
DECLARED: dict[str, Any] = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
}  # fmt: skip


@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("name", ["deepseek", "qwen"])
def test_every_group(shared: Path, tmp_path: Path, name: str, group: int) -> None:
    expected = quantized_copy(
        golden(shared, name), tmp_path, DECLARED | {"group_size": group}, partial(awq, group=group)
    )
    scheme = check(tmp_path, expected)
    assert scheme.storage(f"{Q}.weight") == Storage(4, None if group == -1 else group, offset=True)
    assert scheme.storage("model.layers.1.mlp.gate.weight") is None and scheme.storage("lm_head.weight") is None
    assert scheme.name == f"awq, 4 bits in {'rows' if group == -1 else f'groups of {group}'}"
    assert scheme.method == "w4a16"
    assert scheme.has_bias(f"{Q}.weight") == (name == "qwen") and not scheme.has_bias(f"{DENSE_GATE}.weight")


def test_numbers_by_hand(tmp_path: Path) -> None:
    """One word: from its lowest bits on columns 0, 2, 4, 6, 1, 3, 5, 7."""
    tensors = {
        "qweight": torch.tensor([[0x75316420], [-0x789ABCDF]], dtype=torch.int32),  # the second is 0x87654321
        "qzeros": torch.tensor([[0x0F00000F]], dtype=torch.int32),
        "scales": torch.arange(1, 9, dtype=torch.float16)[None],
    }
    write(tmp_path, {f"{Q}.{part}": tensor for part, tensor in tensors.items()}, DECLARED | {"group_size": 2})
    with opened(tmp_path) as (_, source):
        values = read(source, f"{Q}.weight", torch.int8)
        assert (values.t() + 8).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [1, 5, 2, 6, 3, 7, 4, 8]]
        assert read(source, f"{Q}.weight_scale", torch.float32).flatten().tolist() == list(range(1, 9))
        assert (read(source, f"{Q}.weight_offset", torch.float32) + 8).flatten().tolist() == [15, 0, 0, 0, 0, 15, 0, 0]


def write(folder: Path, tensors: dict[str, Tensor], declared: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": declared}))


@pytest.mark.parametrize("zeros", [True, False])
def test_without_zero_points(shared: Path, tmp_path: Path, zeros: bool) -> None:
    """All are 8, stored or not."""
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(awq, group=32))
    with opened(tmp_path) as (_, source):
        middle = {
            name: read(source, name, torch.int8).float()
            * read(source, f"{name}_scale", torch.float32).repeat_interleave(32, dim=1)
            for name in expected
            if is_linear(name)
        }

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("qzeros")]:
            if zeros:
                tensors[name].fill_(-0x77777778)  # 0x88888888
            else:
                del tensors[name]

    edit(tmp_path, change)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["zero_point"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert check(tmp_path, expected | middle).storage(f"{Q}.weight") == Storage(4, 32)


# ------------------------------------------------------------------------------------------------- which are packed


def test_a_gate_projection_that_an_entry_hits_too(shared: Path, tmp_path: Path) -> None:
    """ "mlp.gate" is the router, and AutoAWQ leaves the first layer's mlp.gate_proj out with it: the files tell."""
    declared = DECLARED | {"modules_to_not_convert": ["mlp.gate"]}
    pack = partial(awq, group=32)
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared, pack)
    assert check(tmp_path, expected).storage(f"{DENSE_GATE}.weight") == Storage(4, 32, offset=True)
    plain = {f"{DENSE_GATE}.weight".replace(".", "__"): lambda name, weight: None}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, declared, pack, **plain)
    scheme = check(tmp_path, expected)
    assert scheme.storage(f"{DENSE_GATE}.weight") is None
    assert scheme.storage("model.layers.1.mlp.experts.0.gate_proj.weight") == Storage(4, 32, offset=True)


def test_entries_without_files(tmp_path: Path) -> None:
    """Whole words between dots."""
    entries = ["mlp.gate", "model.layers.2.", "v_proj", "o_pro", "self_attn.k_proj"]
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization_config": DECLARED | {"modules_to_not_convert": entries}})
    )
    scheme = scheme_of(tmp_path)
    for name, packed in {
        "model.layers.0.mlp.gate_proj": True,
        "model.layers.0.mlp.gate": False,
        "model.layers.0.self_attn.q_proj": True,
        "model.layers.0.self_attn.k_proj": False,
        "model.layers.0.self_attn.v_proj": False,
        "model.layers.0.self_attn.o_proj": True,
        "model.layers.2.self_attn.q_proj": False,
        "model.layers.20.self_attn.q_proj": True,
    }.items():
        assert (scheme.storage(f"{name}.weight") is not None) == packed, name


def test_one_entry_without_its_list(tmp_path: Path) -> None:
    own = DECLARED | {"modules_to_not_convert": "k_proj"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": own}))
    scheme = scheme_of(tmp_path)
    assert scheme.storage("model.layers.0.self_attn.k_proj.weight") is None
    assert scheme.storage("model.layers.0.self_attn.q_proj.weight") is not None


def test_a_head_that_is_packed_becomes_floats(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = {"lm_head__weight": lambda name, weight: awq(weight, 32)}
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(awq, group=32), **head)
    with caplog.at_level(logging.INFO):
        assert check(tmp_path, expected).storage("lm_head.weight") is None
    said = "1 quantised weight, held as floats: embeddings, heads and routers are always floats here: lm_head.weight"
    assert caplog.text.count(said) == 1


def test_nothing_is_said_where_all_packed_weights_are_taken(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(awq, group=32))
    with caplog.at_level(logging.INFO):
        check(tmp_path, expected)
    assert "held as floats" not in caplog.text


def test_old_names_of_fields_in_a_file_of_its_own(shared: Path, tmp_path: Path) -> None:
    expected = quantized_copy(golden(shared, "deepseek"), tmp_path, None, partial(awq, group=64))
    own = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "quant_config.json").write_text(json.dumps(own))
    assert check(tmp_path, expected).storage(f"{Q}.weight") == Storage(4, 64, offset=True)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"version": "gemv"},
            "version is 'gemv', but only 'gemm' is read; AutoAWQ makes a checkpoint of 4 bits",
        ),
        ({"version": "gemv_fast"}, "version is 'gemv_fast', but only 'gemm'"),
        ({"version": "exllama"}, "version is 'exllama', but only 'gemm'"),
        ({"version": "marlin"}, "version is 'marlin', but only 'gemm'"),
        ({"version": 1}, "version is 1, but only 'gemm'"),
        ({"bits": 8}, "bits is 8, but only 4 is read; AutoAWQ makes a checkpoint of 4 bits and version gemm"),
        ({"bits": None}, "bits is null"),
        ({"bits": None, "w_bit": 3}, "w_bit is 3, but only 4 is read"),
        ({"group_size": 0}, "group_size is 0, but must be -1 for whole rows"),
        ({"group_size": None, "q_group_size": "x"}, "q_group_size is 'x', but must be an integer"),
        ({"zero_point": 1}, "zero_point is 1, but must be true or false"),
        ({"modules_to_not_convert": 1}, "modules_to_not_convert is 1, but must be a list of names"),
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
        (lambda x: x.pop(f"{Q}.qzeros"), f" has no tensor {Q}.qzeros, which belongs to {Q}.qweight"),
        (lambda x: x.pop(f"{Q}.scales"), f" has no tensor {Q}.scales, which belongs to {Q}.qweight"),
        (lambda x: x.pop(f"{Q}.qweight"), f" has no tensor {Q}.qweight, which belongs to {Q}.scales"),
        (put("qweight", lambda x: x.t()), rf": tensor {Q}.scales has shape \(4, 128\), but .* makes it \(1, 1024\)"),
        (put("qweight", lambda x: x[:64]), rf": tensor {Q}.scales has shape \(4, 128\), but .* makes it \(2, 128\)"),
        (put("qweight", lambda x: x.long()), rf": tensor {Q}.qweight is torch.int64, but must be torch.int32"),
        (put("qzeros", lambda x: x[:, :8]), rf": tensor {Q}.qzeros has shape \(4, 8\), but .* makes it \(4, 16\)"),
        (put("qzeros", lambda x: x.half()), rf": tensor {Q}.qzeros is torch.float16, but must be torch.int32"),
        (put("scales", lambda x: x.long()), rf": tensor {Q}.scales is torch.int64, but must be torch.float16"),
        (lambda x: x.update({f"{Q}.bias": torch.zeros(3)}), rf": tensor {Q}.bias has shape \(3,\), but .* \(128,\)"),
    ],
)
def test_files_that_do_not_fit(shared: Path, tmp_path: Path, damage: Any, message: str) -> None:
    quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(awq, group=32))
    edit(tmp_path, damage)
    file = re.escape(str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match=f"^{file}{message}"), opened(tmp_path) as (scheme, source):
        floats_of(scheme, source, f"{Q}.weight")


def test_zero_points_that_are_declared_away(shared: Path, tmp_path: Path) -> None:
    quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED | {"zero_point": False}, partial(awq, group=32))
    said = rf"tensor {Q}\.qzeros is not 8 everywhere, although zero_point is declared false"
    with pytest.raises(CheckpointError, match=said), opened(tmp_path) as (scheme, source):
        floats_of(scheme, source, f"{Q}.weight")
