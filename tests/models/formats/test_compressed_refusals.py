"""compressed-tensors: what is declared and not read, and files that do not fit what is declared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models.errors import CheckpointError, ConfigError
from tests.models.formats.checkpoints import edit, golden, quantized_copy
from tests.models.formats.packing import Packed, compressed, float8
from tests.models.formats.test_compressed_tensors import STATIC, TOKEN, Q, declared, weights
from tests.models.formats.test_gptq import shuffled
from tests.models.quantized.reading import floats_of, opened, read, scheme_of

Damage = Callable[[dict[str, Tensor]], object]
AGAIN = "llm-compressor can quantise the float weights again"


def refused(folder: Path, declaration: dict[str, Any], message: str) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": declaration}))
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(str(folder / 'config.json'))}: quantization_config:? {message}"
    ):
        scheme_of(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bits": 2}, f"num_bits is 2, but only 4 and 8 are read; {AGAIN} with 4 or 8 bits"),
        ({"num_bits": "4"}, "num_bits is '4', but must be an integer"),
        ({"type": "float"}, "num_bits is 4, but of floats only those of 8 bits are read"),
        ({"type": "nf"}, "num_bits is 4, but of floats only"),
        (
            {"strategy": "tensor_group"},
            "strategy is 'tensor_group', but weights are read by tensor, channel, group, block",
        ),
        ({"strategy": "token"}, "strategy is 'token', but weights are read by"),
        ({"group_size": None}, "group_size is None, but groups need a size"),
        ({"group_size": -1}, "group_size is -1, but groups need a size"),
        ({"group_size": 0}, "group_size is 0, but must be -1 for whole rows"),
        ({"group_size": "x"}, "group_size is 'x', but must be an integer"),
        ({"symmetric": 1}, "symmetric is 1, but must be true or false"),
        ({"dynamic": True}, "dynamic is True, but weights have scales of their own"),
        ({"actorder": "other"}, "actorder is 'other', but only weight, static, group and dynamic are read"),
        ({"strategy": "block", "block_structure": [128]}, r"block_structure is \[128\], but must be two integers"),
        ({"strategy": "block", "block_structure": "ax2"}, "block_structure is 'ax2', but must be two integers"),
        ({"strategy": "block", "block_structure": "0x2"}, "block_structure is '0x2', but must be two integers"),
    ],
)
def test_weights(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refused(
        tmp_path,
        declared("pack-quantized", {"weights": weights() | changes}),
        f"config_groups 'group_0': weights: {message}",
    )


W8 = weights(8, None)


@pytest.mark.parametrize(
    ("form", "inputs", "message"),
    [
        (W8, TOKEN | {"num_bits": 4}, "num_bits is 4, but activations of integers have 8 bits here"),
        (W8, TOKEN | {"type": "nf"}, "num_bits is 8, but activations of integers"),
        (
            W8,
            TOKEN | {"symmetric": False},
            "symmetric is False, but activations that are quantised as they come are so",
        ),
        (W8, TOKEN | {"strategy": "tensor"}, "strategy is 'tensor', but only dynamic ones by token and static ones by"),
        (W8, TOKEN | {"strategy": "group"}, "strategy is 'group', but only dynamic ones by token"),
        (W8, TOKEN | {"dynamic": "local"}, "strategy is 'token', but only dynamic ones by token"),
        (W8, STATIC | {"strategy": "token"}, "strategy is 'token', but only dynamic ones by token"),
        (
            weights(4, 32),
            TOKEN,
            "num_bits is 8, but int8 activations need symmetric int8 weights with a scale for each",
        ),
        (weights(8, 32), TOKEN, "num_bits is 8, but int8 activations need symmetric int8 weights"),
        (W8 | {"symmetric": False}, STATIC, "num_bits is 8, but int8 activations need symmetric int8 weights"),
    ],
)
def test_activations(tmp_path: Path, form: dict[str, Any], inputs: dict[str, Any], message: str) -> None:
    group = {"weights": form, "input_activations": inputs}
    refused(tmp_path, declared("int-quantized", group), f"config_groups 'group_0': input_activations: {message}")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"targets": "Linear"}, ": targets is 'Linear', but must be a list of names"),
        ({"weights": None}, ": weights is None, but activations without weights are not quantised here"),
        ({"weights": [1]}, r": weights is \[1\], but must be null or an object"),
        ({"output_activations": TOKEN}, ": output_activations is .*, but outputs are not quantised here"),
        ({"format": "marlin-24"}, ": format is 'marlin-24', but only int-quantized, naive-quantized, float-quantized"),
    ],
)
def test_groups(tmp_path: Path, group: dict[str, Any], message: str) -> None:
    form = declared("pack-quantized", {"weights": weights()} | group)
    refused(tmp_path, form, f"config_groups 'group_0'{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_groups": {}}, r"config_groups is \{\}, but must be an object of groups"),
        (
            {"config_groups": {"W4A16": ["Linear"]}},
            r"config_groups 'W4A16' is \['Linear'\], but must be an object with",
        ),
        ({"format": "nvfp4-pack-quantized"}, f"format is 'nvfp4-pack-quantized', but only .* are read; {AGAIN} in one"),
        ({"format": "mixed-precision"}, "format is 'mixed-precision', but only"),
        ({"format": "dense"}, "format is 'dense', but only .* are read; save it with save_compressed=True"),
        ({"format": None}, "format is None, but only"),
        ({"ignore": "lm_head"}, "ignore is 'lm_head', but must be a list of names"),
        ({"ignore": ["re:("]}, r"ignore has '\(', no regular expression"),
        (
            {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity_config is .*, but sparse weights are not read",
        ),
        ({"sparsity_config": [1]}, r"sparsity_config is \[1\], but sparse weights are not read"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config is .*, which is not computed here"),
        ({"moe_sparsity_config": {"method": "prune"}}, "moe_sparsity_config is .*, which is not computed here"),
    ],
)
def test_declarations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refused(tmp_path, declared("pack-quantized", {"weights": weights()}) | changes, message)


def test_targets_that_are_no_pattern(tmp_path: Path) -> None:
    group = {"weights": weights(), "targets": ["re:*"]}
    refused(tmp_path, declared("pack-quantized", group), r"targets has '\*', no regular expression")


def test_what_changes_nothing_is_accepted(tmp_path: Path) -> None:
    more = {
        "sparsity_config": {"format": "dense"},
        "transform_config": {},
        "moe_sparsity_config": None,
        "version": "0.9",
    }
    config = {"quantization_config": declared("pack-quantized", {"weights": weights()}, **more)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert scheme_of(tmp_path).method == "w4a16"


# ------------------------------------------------------------------------------------------------------------ files


def drop(part: str) -> Damage:
    return lambda tensors: tensors.pop(f"{Q}.{part}")


def put(part: str, change: Callable[[Tensor], Tensor]) -> Damage:
    def replace(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.{part}"] = change(tensors[f"{Q}.{part}"])

    return replace


def not_read(folder: Path, damage: Damage, message: str) -> None:
    edit(folder, damage)
    file = re.escape(str(folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match=f"^{file}{message}"), opened(folder) as (scheme, source):
        floats_of(scheme, source, f"{Q}.weight")
        read(source, f"{Q}.input_scale", torch.float32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("weight_packed"), f" has no tensor {Q}.weight_packed, which belongs to {Q}.weight_scale"),
        (drop("weight_scale"), f" has no tensor {Q}.weight_scale, which belongs to {Q}.weight_packed"),
        (drop("weight_shape"), f" has no tensor {Q}.weight_shape, which belongs to {Q}.weight_packed"),
        (drop("weight_zero_point"), f" has no tensor {Q}.weight_zero_point, which belongs to {Q}.weight_packed"),
        (
            put("weight_packed", lambda x: x[:, :8]),
            rf": tensor {Q}.weight_packed has shape \(128, 8\), but .*\(128, 16\)",
        ),
        (
            put("weight_packed", lambda x: x.long()),
            rf": tensor {Q}.weight_packed is torch.int64, but must be torch.int32",
        ),
        (
            put("weight_shape", lambda x: x.flip(0) * 2),
            rf": tensor {Q}.weight_packed has shape \(128, 16\), but .*\(256",
        ),
        (put("weight_shape", lambda x: x * 0), rf": tensor {Q}.weight_shape is \[0, 0\], but must be the shape"),
        (put("weight_shape", lambda x: -x), rf": tensor {Q}.weight_shape is \[-128, -128\], but must be the shape"),
        (
            put("weight_shape", lambda x: x[:1]),
            rf": tensor {Q}.weight_shape has shape \(1,\), but a matrix makes it \(2,\)",
        ),
        (
            put("weight_shape", lambda x: x.float()),
            rf": tensor {Q}.weight_shape is torch.float32, but must be torch.int32",
        ),
        (put("weight_scale", lambda x: x[:, :1]), rf": tensor {Q}.weight_scale has shape \(128, 1\), but .*\(128, 4\)"),
        (put("weight_scale", lambda x: x.long()), rf": tensor {Q}.weight_scale is torch.int64, but must be"),
        (
            put("weight_zero_point", lambda x: x.t()),
            rf": tensor {Q}.weight_zero_point has shape \(4, 16\), but .*\(16, 4\)",
        ),
        (
            put("weight_zero_point", lambda x: x.half()),
            rf": tensor {Q}.weight_zero_point is torch.float16, but must be",
        ),
    ],
)
def test_packed_files(shared: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    form = declared("pack-quantized", {"weights": weights(symmetric=False)})
    pack = partial(compressed, bits=4, group=32, packed=True, symmetric=False)
    quantized_copy(golden(shared, "deepseek"), tmp_path, form, pack)
    not_read(tmp_path, damage, message)


def static(weight: Tensor) -> Packed:
    tensors, floats = compressed(weight, 8, packed=False)
    inputs = {"input_scale": torch.tensor([0.5]), "input_zero_point": torch.tensor([3], dtype=torch.int8)}
    return tensors | inputs, floats


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("weight"), f" has no tensor {Q}.weight, which belongs to {Q}.weight_scale"),
        (drop("weight_scale"), f" has no tensor {Q}.weight_scale, which belongs to {Q}.weight"),
        (put("weight", lambda x: x.half()), rf": tensor {Q}.weight is torch.float16, but must be torch.int8"),
        (put("weight", lambda x: x[:64]), rf": tensor {Q}.weight_scale has shape \(128, 1\), but .*\(64, 1\)"),
        (drop("input_scale"), f" has no tensor {Q}.input_scale, which belongs to {Q}.weight_scale"),
        (drop("input_zero_point"), f" has no tensor {Q}.input_zero_point, which belongs to {Q}.input_scale"),
        (put("input_scale", lambda x: x.repeat(2)), rf": tensor {Q}.input_scale has shape \(2,\), but .*\(1, 1\)"),
        (put("input_scale", lambda x: x * 0), rf": tensor {Q}.input_scale is 0.0, but must be above 0"),
        (put("input_zero_point", lambda x: x.float()), rf": tensor {Q}.input_zero_point is torch.float32, but must be"),
    ],
)
def test_files_with_static_activations(shared: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    group = {"weights": W8, "input_activations": STATIC | {"symmetric": False}}
    quantized_copy(golden(shared, "deepseek"), tmp_path, declared("int-quantized", group), static)
    not_read(tmp_path, damage, message)


def test_a_zero_point_of_symmetric_activations(shared: Path, tmp_path: Path) -> None:
    group = {"weights": W8, "input_activations": STATIC}
    quantized_copy(golden(shared, "deepseek"), tmp_path, declared("int-quantized", group), static)
    with pytest.raises(
        CheckpointError, match=r"input_zero_point is not 0, although input_activations are declared sym"
    ):
        opened(tmp_path).__enter__()


def test_zero_points_of_symmetric_weights(shared: Path, tmp_path: Path) -> None:
    pack = partial(compressed, bits=8, packed=False, symmetric=False)
    quantized_copy(golden(shared, "deepseek"), tmp_path, declared("int-quantized", {"weights": W8}), pack)
    said = rf": tensor {Q}.weight_zero_point is not 0 everywhere, although symmetric is declared true"
    not_read(tmp_path, lambda tensors: None, said)


@pytest.mark.parametrize(
    ("order", "damage", "message"),
    [
        ("group", drop("weight_g_idx"), f" has no tensor {Q}.weight_g_idx, which belongs to {Q}.weight_packed"),
        ("group", put("weight_g_idx", lambda x: x + 1), f": tensor {Q}.weight_g_idx names groups outside of the 4"),
        ("group", put("weight_g_idx", lambda x: x[:9]), rf": tensor {Q}.weight_g_idx has shape \(9,\), but .*\(128,\)"),
        ("static", lambda tensors: None, ": tensor .*.weight_g_idx puts inputs into groups out of order, but actorder"),
    ],
)
def test_orders(shared: Path, tmp_path: Path, order: str, damage: Damage, message: str) -> None:
    def pack(weight: Tensor) -> Packed:
        return compressed(weight, 4, 32, packed=True, order=shuffled(weight, 32))

    form = declared("pack-quantized", {"weights": weights(actorder=order)})
    quantized_copy(golden(shared, "deepseek"), tmp_path, form, pack)
    not_read(tmp_path, damage, message)


def test_integers_that_are_declared_floats(shared: Path, tmp_path: Path) -> None:
    """And a weight of the wrong kind of number."""
    form = {"num_bits": 8, "type": "float", "strategy": "channel"}
    quantized_copy(
        golden(shared, "deepseek"),
        tmp_path,
        declared("float-quantized", {"weights": form}),
        partial(float8, block=(1, 0), scale="weight_scale"),
    )
    said = rf": tensor {Q}.weight is torch.int8, but must be torch.float8_e4m3fn"
    not_read(tmp_path, put("weight", lambda x: x.view(torch.int8)), said)


def test_a_map_that_is_ignored_and_packed(shared: Path, tmp_path: Path) -> None:
    form = declared("pack-quantized", {"weights": weights()}, ignore=["lm_head", Q])
    quantized_copy(golden(shared, "deepseek"), tmp_path, form, partial(compressed, bits=4, group=32, packed=True))
    said = f": tensor {Q}.weight_packed is unexpected: config_groups and ignore leave the weight as floats"
    not_read(tmp_path, lambda tensors: None, said)


def test_a_map_that_is_neither_ignored_nor_packed(shared: Path, tmp_path: Path) -> None:
    plain = {f"{Q}.weight".replace(".", "__"): lambda name, weight: None}
    pack = partial(compressed, bits=4, group=32, packed=True)
    form = declared("pack-quantized", {"weights": weights()})
    quantized_copy(golden(shared, "deepseek"), tmp_path, form, pack, **plain)
    not_read(tmp_path, lambda tensors: None, f" has no tensor {Q}.weight_scale, which belongs to {Q}.weight")


@pytest.mark.parametrize(("changed", "shown"), [(8, "-8 to 8"), (-9, "-9 to 7")])
@pytest.mark.parametrize("group", [32, -1])
def test_plain_integers_of_more_than_4_bits(shared: Path, tmp_path: Path, group: int, changed: int, shown: str) -> None:
    def change(weight: Tensor) -> Tensor:
        weight[0, 0], weight[0, 1], weight[0, 2] = -8, 7, changed
        return weight

    pack = partial(compressed, bits=4, group=group, packed=False)
    form = declared("int-quantized", {"weights": weights(4, None if group == -1 else group)})
    quantized_copy(golden(shared, "deepseek"), tmp_path, form, pack)
    edit(tmp_path, put("weight", change))
    not_read(tmp_path, lambda tensors: None, f": tensor {Q}.weight has numbers from {shown}, but 4 bits are -8 to 7")
