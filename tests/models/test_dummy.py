"""Dummy weights: the same model at every tp, in every process, at the speed of memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from atb_models.layers.parameter import fillings
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.weights.dummy import PERIOD, DummyWeights
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights
from tests.records import build_of, part_of


def dummy_model(
    folder: Path, rank: int = 0, tp: int = 1, dtype: torch.dtype = torch.bfloat16, **fields: Any
) -> Decoder:
    tiny.write_checkpoint(folder, **fields)
    (folder / "model.safetensors").unlink()
    config = load_model_config(folder)
    model = build_model(config, build_of(dtype, rank, tp))
    load_weights(model, config, open_weights(folder, "dummy", model, config))
    return model


def test_every_tp_gives_the_same_model(tmp_path: Path) -> None:
    fields: dict[str, Any] = dict(attention_bias=True, moe_intermediate_size=36)
    one = dummy_model(tmp_path, **fields)
    for rank in range(4):
        model = dummy_model(tmp_path, rank, 4, **fields)
        for name, filling in fillings(model).items():
            for role, part in filling.parts.items():
                whole = part_of(one, name, role)
                slice_ = whole if part.dim is None else whole.narrow(part.dim, part.start, part.stop - part.start)
                assert torch.equal(part_of(model, name, role), slice_), (name, role)


def test_values(tmp_path: Path) -> None:
    model = dummy_model(tmp_path, initializer_range=0.5)
    head = model.get_parameter("lm_head.weight").float()
    assert abs(head.mean()) < 0.02 and abs(head.std() - 0.5) < 0.02
    assert (model.norm.weight == 1).all()
    embedding = model.get_parameter("embed.weight").float()
    assert abs(torch.corrcoef(torch.stack((head.flatten(), embedding.flatten())))[0, 1]) < 0.05
    assert abs(torch.corrcoef(head[:2])[0, 1]) < 0.5


def test_values_are_those_of_a_checkpoint_in_the_declared_dtype(tmp_path: Path) -> None:
    half, full = (dummy_model(tmp_path, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter, half.get_parameter(name).float())


def test_values_do_not_depend_on_torch_seed_or_order(tmp_path: Path) -> None:
    first = dummy_model(tmp_path).get_parameter("lm_head.weight")
    torch.manual_seed(1)
    assert torch.equal(dummy_model(tmp_path, num_hidden_layers=1).get_parameter("lm_head.weight"), first)


def test_long_tensors_go_round_the_table(tmp_path: Path) -> None:
    fields: dict[str, Any] = dict(hidden_size=1024, vocab_size=2200, num_hidden_layers=1)
    tiny.write_checkpoint(tmp_path, **fields)
    config = load_model_config(tmp_path)
    model = build_model(config, build_of(torch.bfloat16, device="meta"))
    flat = DummyWeights(model, config).read("lm_head.weight").flatten()
    assert flat.numel() > 2 * PERIOD
    assert torch.equal(flat[PERIOD : 2 * PERIOD], flat[:PERIOD])
    assert torch.equal(DummyWeights(model, config).read("lm_head.weight", 1, 10, 20), flat.view(-1, 1024)[:, 10:20])


def test_the_table_is_converted_once_for_each_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_checkpoint(tmp_path)
    config = load_model_config(tmp_path)
    source = DummyWeights(build_model(config, build_of(torch.bfloat16, device="meta")), config)
    converted, convert = [], torch.Tensor.to

    def to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        converted.append(dtype)
        return convert(tensor, dtype)

    monkeypatch.setattr(torch.Tensor, "to", to)
    target = torch.empty(source.shape("lm_head.weight"), dtype=torch.float16)
    for _ in range(3):
        source.read_into("lm_head.weight", None, 0, 0, target)
    assert converted == [torch.float16]


@pytest.mark.full  # a rate, which a busy machine may not reach
def test_filling_is_faster_than_a_gigabyte_a_second(tmp_path: Path) -> None:
    fields: dict[str, Any] = dict(hidden_size=1024, vocab_size=16384, num_hidden_layers=1, first_k_dense_replace=0)
    tiny.write_checkpoint(tmp_path, **fields)
    config = load_model_config(tmp_path)
    model = build_model(config, build_of(torch.bfloat16, 1, 2))
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    seconds = []
    for _ in range(4):  # the first also makes the pages
        source = open_weights(tmp_path, "dummy", model, config)
        begin = time.perf_counter()
        load_weights(model, config, source)
        seconds.append(time.perf_counter() - begin)
    assert size / min(seconds) > 1e9
