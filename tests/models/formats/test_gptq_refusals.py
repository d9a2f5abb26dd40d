"""GPTQ: what is declared and not read, and files that do not fit what is declared."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models.errors import CheckpointError, ConfigError
from tests.models.formats.checkpoints import edit, golden, quantized_copy
from tests.models.formats.packing import Packed, gptq
from tests.models.formats.test_gptq import DECLARED, Q, shuffled
from tests.models.quantized.reading import floats_of, opened, scheme_of


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits is 3, but only 4 and 8 are read; GPTQModel makes such a checkpoint of the float weights"),
        ({"bits": 2}, "bits is 2, but only 4 and 8"),
        ({"bits": None}, "bits is null"),
        ({"bits": "4"}, "bits is '4', but must be an integer"),
        ({"group_size": 0}, "group_size is 0, but must be -1 for whole rows"),
        ({"group_size": -2}, "group_size is -2, but must be"),
        ({"group_size": 10**30}, "group_size is 1000.*, but must be"),
        ({"sym": "yes"}, "sym is 'yes', but must be true or false"),
        (
            {"checkpoint_format": "marlin"},
            "checkpoint_format is 'marlin', but only gptq, gptq_v2 .* save it with format gptq",
        ),
        ({"format": "bitblas"}, "format is 'bitblas', but only"),
        ({"checkpoint_format": 1}, "checkpoint_format is 1, but only"),
        ({"is_marlin_format": True}, "is_marlin_format is True, but weights in the order of that kernel are not read"),
        ({"pack_dtype": "int16"}, "pack_dtype is 'int16', but only int32"),
        ({"rotation": "hadamard"}, "rotation is 'hadamard', but rotated weights are not read"),
        ({"data_type": "mx_fp"}, "data_type is 'mx_fp', but only int is read"),
        ({"dynamic": {"+:(": {}}}, r"dynamic has '\(', no regular expression"),
        ({"dynamic": {"x": 1}}, "dynamic has 1 for 'x', but must have an object"),
        ({"dynamic": {"x": {"bits": 2}}}, "dynamic 'x': bits is 2, but only 4 and 8"),
        ({"dynamic": [1]}, r"dynamic is \[1\], but must be an object"),
        ({"modules_in_block_to_quantize": [1]}, r"modules_in_block_to_quantize is \[1\], but must be a list of names"),
        ({"modules_in_block_to_quantize": "x"}, "modules_in_block_to_quantize is 'x', but must be a list of names"),
    ],
)
def test_what_is_declared_and_not_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": DECLARED | changes}))
    place = re.escape(f"{tmp_path / 'config.json'}: quantization_config")
    with pytest.raises(ConfigError, match=rf"^{place}:? {message}"):
        scheme_of(tmp_path)


def drop(part: str) -> Any:
    return lambda tensors: tensors.pop(f"{Q}.{part}")


def put(part: str, change: Any) -> Any:
    def replace(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.{part}"] = change(tensors[f"{Q}.{part}"])

    return replace


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("qzeros"), f" has no tensor {Q}.qzeros, which belongs to {Q}.qweight"),
        (drop("scales"), f" has no tensor {Q}.scales, which belongs to {Q}.qweight"),
        (drop("qweight"), f" has no tensor {Q}.qweight, which belongs to {Q}.scales"),
        (put("qweight", lambda x: x[:8]), rf": tensor {Q}.scales has shape \(4, 128\), but .* makes it \(2, 128\)"),
        (put("qweight", lambda x: x[:, :64]), rf": tensor {Q}.scales has shape \(4, 128\), but .* makes it \(4, 64\)"),
        (put("qweight", lambda x: x.view(-1)), rf": tensor {Q}.qweight has shape \(2048,\), but must have two dim"),
        (
            put("qweight", lambda x: x[:0]),
            rf": tensor {Q}.qweight has shape \(0, 128\), but must have two dimensions of",
        ),
        (put("qweight", lambda x: x.float()), rf": tensor {Q}.qweight is torch.float32, but must be torch.int32"),
        (put("scales", lambda x: x.t()), rf": tensor {Q}.scales has shape \(128, 4\)"),
        (put("scales", lambda x: x.to(torch.int32)), rf": tensor {Q}.scales is torch.int32, but must be"),
        (put("qzeros", lambda x: x[:, :8]), rf": tensor {Q}.qzeros has shape \(4, 8\), but .* makes it \(4, 16\)"),
        (put("qzeros", lambda x: x.to(torch.int64)), rf": tensor {Q}.qzeros is torch.int64, but must be torch.int32"),
        (put("g_idx", lambda x: x[:64]), rf": tensor {Q}.g_idx has shape \(64,\), but .* makes it \(128,\)"),
        (put("g_idx", lambda x: x.flip(0)), rf": tensor {Q}.g_idx puts inputs into groups out of order, although desc"),
        (put("qzeros", lambda x: x + 1), rf": tensor {Q}.qzeros is not 7 everywhere, although .* symmetric"),
        (put("scales", lambda x: x.new_zeros(8, 128)), rf": tensor {Q}.scales has shape \(8, 128\)"),
    ],
)
def test_files_that_do_not_fit(shared: Path, tmp_path: Path, damage: Any, message: str) -> None:
    quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(gptq, group=32))
    edit(tmp_path, damage)
    file = re.escape(str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match=f"^{file}{message}"), opened(tmp_path) as (scheme, source):
        floats_of(scheme, source, f"{Q}.weight")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("g_idx"), f" has no tensor {Q}.g_idx, which belongs to {Q}.qweight"),
        (put("g_idx", lambda x: x + 1), rf": tensor {Q}.g_idx names groups outside of the 4 that there are"),
        (put("g_idx", lambda x: x.float()), rf": tensor {Q}.g_idx is torch.float32, but must be torch.int32"),
    ],
)
def test_orders_that_do_not_fit(shared: Path, tmp_path: Path, damage: Any, message: str) -> None:
    def pack(weight: Tensor) -> Packed:
        return gptq(weight, 4, 32, order=shuffled(weight, 32))

    quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED | {"desc_act": True}, pack)
    edit(tmp_path, damage)
    file = re.escape(str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match=f"^{file}{message}"), opened(tmp_path) as (scheme, source):
        floats_of(scheme, source, f"{Q}.weight")


def test_a_packed_and_a_plain_weight_of_one_map(shared: Path, tmp_path: Path) -> None:
    quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(gptq, group=32))
    edit(tmp_path, lambda tensors: tensors.update({f"{Q}.weight": torch.zeros(128, 128)}))
    with pytest.raises(CheckpointError, match=rf"tensor {Q}\.weight is unexpected, .* in its packed form too"):
        opened(tmp_path).__enter__()


def test_scales_that_are_no_numbers_are_counted(shared: Path, tmp_path: Path) -> None:
    quantized_copy(golden(shared, "deepseek"), tmp_path, DECLARED, partial(gptq, group=32))
    edit(tmp_path, put("scales", lambda x: torch.full_like(x, torch.nan)))
    with opened(tmp_path) as (_, source):
        assert source.read_into(f"{Q}.weight_scale", 0, 0, 8, torch.empty(8, 4)) == 32
