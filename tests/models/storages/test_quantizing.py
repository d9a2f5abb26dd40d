"""Weights quantised while they are loaded: the numbers, and that every rank holds its cut of the same ones."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atb_models import LLM, ops
from atb_models.errors import CheckpointError
from atb_models.layers.parameter import Filling, Part, fillings
from atb_models.layers.storage import METHODS, Storage
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.quantization import model_quantization
from atb_models.models.weights.checkpoint import open_checkpoint
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights
from atb_models.models.weights.seen import quantizing
from atb_models.models.weights.seen.quantizing import QuantizingWeights
from atb_models.models.weights.weight_map import checkpoint_tensors
from atb_models.ops.native.library import active
from atb_models.ops.weight import Weight
from tests import quantized as quantized_once_more
from tests.models.test_finite import PLACES, SAID, damaged
from tests.quantized import Array, by_input, integers_and_scales, is_quantized
from tests.records import build_of, in_layout

# Widths that divide by no number of ranks; XVERSE's KV heads are copied, and no two ranks share their 7 queries evenly.
ODD: dict[str, dict[str, Any]] = {
    "deepseek": {"moe_intermediate_size": 33, "intermediate_size": 97},
    "qwen": {"moe_intermediate_size": 27, "shared_expert_intermediate_size": 51},
    "xverse": {"intermediate_size": 27, "hidden_size": 112, "num_attention_heads": 14, "num_key_value_heads": 2},
}


def source_of(folder: Path, **rows: list[list[float]]) -> QuantizingWeights:
    tiny.write_weights(folder, {name: torch.tensor(values) for name, values in rows.items()})
    return QuantizingWeights(open_checkpoint(folder), dict.fromkeys(rows, METHODS["w8a16"]))


def read(source: QuantizingWeights, name: str, dim: int | None = None, start: int = 0, stop: int = 0) -> Tensor:
    shape = list(source.shape(name))
    if dim is not None:
        shape[dim] = stop - start
    target = torch.empty(shape, dtype=torch.float32 if name.endswith("_scale") else torch.int8)
    assert source.read_into(name, dim, start, stop, target) == 0
    return target


def test_numbers_by_hand(tmp_path: Path) -> None:
    """Halves go to the even neighbour, the ends are -127 and 127; rows of zeros and of the smallest floats are fine."""
    least = 2.0**-149
    source = source_of(
        tmp_path,
        a=[
            [127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5],
            [-254.0, 254.0, 1.0, 3.0, 5.0, 0.0, -1.1],
            [0.0] * 7,
            [least, -least, 0.0, 0.0, 0.0, 0.0, 0.0],
            [190 * least, 63 * least, -190 * least, 0.0, 0.0, 0.0, 0.0],
        ],
    )
    assert source.names() == {"a", "a_scale"} and source.shape("a_scale") == (5,)
    assert source.where("a_scale") == source.where("a") == str(tmp_path / "model.safetensors")
    assert read(source, "a").tolist() == [
        [127, -127, 0, 2, 2, 0, -2],
        [-127, 127, 0, 2, 2, 0, -1],
        [0] * 7,
        [0] * 7,
        [127, 63, -127, 0, 0, 0, 0],  # the scale is a whole number of the smallest floats
    ]
    assert read(source, "a_scale").tolist() == [1.0, 2.0, 1.0, 1.0, least]


def test_numbers_of_4_bits_by_hand(tmp_path: Path) -> None:
    """A scale for each three inputs, the last of a row for one; -8 and 7 are the ends, halves go to the even."""
    tiny.write_weights(tmp_path, {"a": torch.tensor([[7.5, -7.5, 2.5, 15.0, -13.0, 0.0, 3.75], [0.0] * 7])})
    source = QuantizingWeights(open_checkpoint(tmp_path), {"a": Storage(4, group=3)})
    assert source.names() == {"a", "a_scale"} and source.shape("a_scale") == (2, 3)
    assert read(source, "a").tolist() == [[7, -8, 2, 7, -6, 0, 7], [0] * 7]
    assert read(source, "a_scale").tolist() == [[1.0, 2.0, 0.5], [1.0, 1.0, 1.0]]
    assert read(source, "a_scale", 0, 1, 2).tolist() == [[1.0, 1.0, 1.0]]
    assert read(source, "a_scale", 1, 1, 3).tolist() == [[2.0, 0.5], [1.0, 1.0]]
    assert read(source, "a", 1, 2, 5).tolist() == [[2, 7, -6], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_of_random_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = (torch.randn(50, 70) * torch.logspace(-6, 3, 50)[:, None]).to(dtype)
    tiny.write_weights(tmp_path, {"w": weight})
    source = QuantizingWeights(open_checkpoint(tmp_path), {"w": METHODS["w8a16"]})
    integers, scales = integers_and_scales(weight)
    assert np.array_equal(read(source, "w").numpy(), integers)
    assert np.array_equal(read(source, "w_scale").numpy(), scales)
    assert np.abs(integers).max(axis=1).tolist() == [127] * 50
    error = np.abs(integers * scales[:, None].astype(np.float64) - weight.double().numpy())
    assert (error <= 0.5001 * scales[:, None]).all()


def test_cuts_hold_the_same_integers_in_any_order_and_any_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(40, 24)
    tiny.write_weights(tmp_path, {"w": weight, "plain": weight.clone()})
    source = QuantizingWeights(open_checkpoint(tmp_path), {"w": METHODS["w8a16"]})
    whole, scales = read(source, "w"), read(source, "w_scale")
    for band in (1, 70, 1 << 20):
        monkeypatch.setattr(quantizing, "BAND", band)
        assert torch.equal(read(source, "w_scale", 0, 7, 19), scales[7:19]), "scales before their rows"
        assert torch.equal(read(source, "w", 0, 7, 19), whole[7:19])
        assert torch.equal(read(source, "w_scale"), scales), "scales of more rows than were read"
        assert torch.equal(read(source, "w", 1, 5, 11), whole[:, 5:11])
        assert torch.equal(read(source, "w_scale"), scales)
    target = torch.empty(40, 24)
    assert source.read_into("plain", None, 0, 0, target) == 0 and torch.equal(target, weight)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(tmp_path: Path, value: float) -> None:
    source = source_of(tmp_path, w=[[1.0, value, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    for (dim, start, stop), numbers in {(1, 0, 2): 1, (1, 2, 4): 0, (0, 1, 2): 0}.items():
        shape = (1, 4) if dim == 0 else (2, stop - start)
        target = torch.full(shape, 99, dtype=torch.int8)
        assert source.read_into("w", dim, start, stop, target) == numbers
        if dim == 1:
            assert target[0].tolist() == [0, 0] and not (target[0] * read(source, "w_scale")[0]).isfinite().any()
            assert target[1].abs().max() > 70


@pytest.mark.parametrize("tp", [1, 2])
def test_one_warning_names_tensors_and_counts(tmp_path: Path, tp: int, caplog: pytest.LogCaptureFixture) -> None:
    damaged(tmp_path, PLACES, math.nan)
    with LLM(tmp_path, device="cpu", quantize="w8a16", kv_blocks=2, max_seq_len=64, tp=tp):
        pass
    (line,) = [record.getMessage() for record in caplog.records if "no numbers" in record.getMessage()]
    assert SAID in line


def test_scales_of_the_checkpoint_are_not_taken_for_ours(tmp_path: Path) -> None:
    """Its weights are quantised already, or it is no checkpoint of floats alone."""
    tiny.write_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    save_file(weights | {name: torch.ones(len(weights[name.removesuffix("_scale")]))}, tmp_path / "model.safetensors")
    for quantize in None, "w8a16":
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {re.escape(name)} is unexpected"):
            LLM(tmp_path, device="cpu", quantize=quantize)


def loaded(folder: Path, rank: int, tp: int, quantize: str) -> Decoder:
    config = load_model_config(folder)
    quantization = model_quantization(config, quantize)
    model = build_model(config, build_of(torch.float32, rank, tp, quantization=quantization))
    source = open_weights(folder, "auto", model, config, quantize)
    load_weights(model, config, source)
    source.close()
    return model


@pytest.mark.parametrize(
    ("quantize", "group"),
    [("w8a16", None), ("w8a8_dynamic", None), ("w4a16", 128), pytest.param("w4a16", 24, id="w4a16-cut-groups")],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_ranks_hold_slices_of_what_the_whole_holds(
    tmp_path: Path, family: str, backend: str, quantize: str, group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, for widths that divide by no number of ranks or groups too; padding is zeros.

    With groups of 24, ranks hold 8, 16 and 40 inputs and more of a row: they cut groups, and the last is shorter.
    """
    monkeypatch.delenv("ATB_CPU_ISA")  # plain weights, see conftest.py
    if group is not None:
        monkeypatch.setitem(METHODS, quantize, replace(METHODS[quantize], group=group))
        monkeypatch.setattr(quantized_once_more, "GROUP", group)
    if backend == "cpu" and active().level is None:
        pytest.skip("this CPU has no level of the library")
    ops.bind(backend)
    tensors = tiny.write_checkpoint(tmp_path, family=family, **ODD[family])
    whole = {name: integers_and_scales(tensor, quantize) for name, tensor in tensors.items() if is_quantized(name)}
    theirs = {(one.parameter, one.role): one.name for one in checkpoint_tensors(load_model_config(tmp_path))}
    for tp in (1, 2, 3, 5, 8):
        for rank in range(tp):
            quantized = {
                name: filling
                for name, filling in fillings(loaded(tmp_path, rank, tp, quantize)).items()
                if filling.weight.layout.quantized
            }
            parts = [theirs[name, role] for name, filling in quantized.items() for role in filling.parts]
            assert sorted(parts) == sorted(whole)
            for name, filling in quantized.items():
                assert filling.weight.layout.is_plain == (backend == "reference")
                expected = expected_weight(filling, {role: whole[theirs[name, role]] for role in filling.parts})
                assert filling.weight.scale is not None and expected.scale is not None
                assert torch.equal(filling.weight.scale, expected.scale), (tp, rank, name)
                assert torch.equal(filling.weight.data, expected.data), (tp, rank, name)


def expected_weight(filling: Filling, whole: dict[str, tuple[Array, Array]]) -> Weight:
    """What fills a weight, put together from the whole tensors by role."""
    layout = filling.weight.layout
    assert layout.scales is not None
    rows, scales = torch.zeros(layout.shape, dtype=torch.int8), torch.zeros(layout.scales)
    for role, part in filling.parts.items():
        integers, of_groups = whole[role]
        ours = (rows, scales) if part.unit is None else (rows[part.unit], scales[part.unit])
        part.within(ours[0]).copy_(own(part, integers))
        if layout.unit is None:
            of_rows = of_groups[part.start : part.stop] if part.dim == 0 else of_groups
            ours[1][part.first :][: len(of_rows)].copy_(torch.from_numpy(of_rows))
        else:
            of_numbers = own(part, np.broadcast_to(by_input(of_groups, integers.shape[1]), integers.shape))
            height, units = of_numbers[:, :: layout.unit].shape
            held = ours[1][part.first if part.dim == 0 else 0 :][:height, :units]
            held.copy_(of_numbers[:, :: layout.unit])
            again = held.repeat_interleave(layout.unit, 1)[:, : of_numbers.shape[1]]
            assert torch.equal(again, of_numbers), "each number has the scale of its group"
    stack = rows.dim() == 3
    return Weight(layout, in_layout(rows, layout, stack=stack), in_layout(scales, layout.beside["scale"], stack=stack))


def own(part: Part, whole: Array) -> Tensor:
    """A part's range of a whole tensor."""
    assert part.dim is not None
    return torch.from_numpy(whole.copy()).narrow(part.dim, part.start, part.stop - part.start)
