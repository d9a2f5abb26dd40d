"""Weights of integers as the NPU would store them, of the real models: which are held as floats, and what they take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.graph import meta_model
from atb_models.layers.parameter import Filling, fillings
from atb_models.layers.storage import METHODS, Storage
from atb_models.models.config_reader import load_model_config
from atb_models.ops.weight import NIBBLES
from atb_models.plan.memory import one_of_each_layer

MODELS = ("deepseek-moe-16b-base", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b")
sizes = pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8])
models = pytest.mark.parametrize("name", MODELS)


def weights_of(shared: Path, name: str, size: int, quantize: str, rank: int = 0) -> dict[str, Filling]:
    """Of a layer of each kind, by parameter; the linear maps that a method is for."""
    config = one_of_each_layer(load_model_config(shared / "headers" / name, log=False))
    with ops.laid_out_for("npu"):
        model = meta_model(config, torch.float16, size, rank, quantize)
    found = fillings(model)
    linear = ("attn.qkv.weight", "attn.o.weight", "gate_up.weight", "down.weight", "experts.gate_up", "experts.down")
    return {parameter: filling for parameter, filling in found.items() if parameter.endswith(linear)}


@sizes
@models
@pytest.mark.parametrize("quantize", METHODS)
def test_none_is_held_as_floats(shared: Path, name: str, size: int, quantize: str) -> None:
    """Widths of 1408 and 1728 over eight ranks, and groups that ranks cut, included."""
    for parameter, filling in weights_of(shared, name, size, quantize).items():
        layout = filling.weight.layout
        assert layout.quantized and not layout.instead and layout.packing is not NIBBLES, parameter
        assert layout.dtype == (torch.int32 if quantize == "w4a16" else torch.int8), parameter


@sizes
@models
@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_groups_that_checkpoints_have(
    shared: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int, group: int
) -> None:
    monkeypatch.setitem(METHODS, "w4a16", Storage(4, group=group, offset=True))
    for parameter, filling in weights_of(shared, name, size, "w4a16").items():
        layout = filling.weight.layout
        assert layout.unit is not None and layout.unit % 32 == 0 and not layout.instead, parameter


@models
def test_groups_of_16_are_held_as_floats(shared: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(METHODS, "w4a16", Storage(4, group=16))
    for parameter, filling in weights_of(shared, name, 1, "w4a16").items():
        layout = filling.weight.layout
        assert layout.dtype == torch.float16, parameter
        assert layout.instead == "npu has no product for groups of 16 inputs", parameter


@models
def test_experts_of_8_bits_in_groups_are_held_as_floats(
    shared: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(METHODS, "w8a16", Storage(8, group=128))
    for parameter, filling in weights_of(shared, name, 1, "w8a16").items():
        assert bool(filling.weight.layout.instead) == ("experts" in parameter), parameter


@sizes
@models
@pytest.mark.parametrize("rank", [0, -1])
def test_shares_of_4_bits_are_multiples_of_32_inputs(shared: Path, name: str, size: int, rank: int) -> None:
    """The widths that down products read; 1408 over eight is 176, so a rank has 192 and the last of them 64."""
    rank %= size
    for parameter, filling in weights_of(shared, name, size, "w4a16", rank).items():
        if parameter.endswith(("down", "down.weight")):
            assert filling.weight.shape[-1] % 32 == 0, parameter
            starts = {part.start for part in filling.parts.values()}
            assert starts == {min(rank * filling.weight.shape[-1], part.shape[1]) for part in filling.parts.values()}


def test_bytes(shared: Path) -> None:
    """Half a byte each, and scales in half precision: of DeepSeek's experts, 64 of [2816, 2048] and [2048, 1408]."""
    bits4, bits8 = (weights_of(shared, MODELS[0], 1, quantize) for quantize in ("w4a16", "w8a16"))
    assert bits4["layers.1.mlp.experts.gate_up"].weight.nbytes == 64 * 2816 * 2048 // 2 + 64 * 2816 * 16 * 2
    assert bits4["layers.1.mlp.experts.down"].weight.nbytes == 64 * 2048 * 1408 // 2 + 64 * 2048 * 11 * 2
    assert bits8["layers.1.mlp.experts.down"].weight.nbytes == 64 * 2048 * 1408 + 64 * 2048 * 2
