"""Dummy weights in the place of a quantised checkpoint's, or quantised while they are made."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from atb_models import LLM
from atb_models.layers.storage import Storage
from atb_models.models import config_reader
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import build_model
from atb_models.models.weights.dummy import DummyWeights
from atb_models.models.weights.seen.dummy_integers import DummyIntegers
from tests.kept_ranks import KeptRanks
from tests.models.storages.schemes import HandMade
from tests.records import build_of

STATIC, TOKEN = Storage(8, activations="static"), Storage(8, activations="token")
# All kinds of storages, each in a matrix of its own; and biases that only the scheme knows.
MIXED = HandMade(
    {
        "q_proj.weight": Storage(4, 24, offset=True), "k_proj.weight": Storage(4, 24, offset=True),
        "v_proj.weight": Storage(4, 24, offset=True), "o_proj.weight": Storage(8, offset=True),
        "layers.0.mlp.down_proj.weight": STATIC, "experts.3.down_proj.weight": Storage(8),
        "layers.0.mlp.gate_proj.weight": STATIC, "layers.0.mlp.up_proj.weight": STATIC,
        "gate_proj.weight": TOKEN, "up_proj.weight": TOKEN,
    },
    biases=("input_layernorm.weight", "o_proj.weight"),
)  # fmt: skip


def read(source: DummyIntegers, name: str, dtype: torch.dtype, dim: int | None = None, *span: int) -> Tensor:
    shape, (start, stop) = list(source.shape(name)), span or (0, 0)
    if dim is not None:
        shape[dim] = stop - start
    target = torch.empty(shape, dtype=dtype)
    assert source.read_into(name, dim, start, stop, target) == 0
    return target


def test_integers_stand_for_the_dummy_floats(tmp_path: Path) -> None:
    """As far as they reach, three standard deviations; any cut of them is a cut of the same."""
    tiny.write_checkpoint(tmp_path)
    config = load_model_config(tmp_path)
    floats = DummyWeights(build_model(config, build_of(torch.float32)), config)
    name, stem = "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.o_proj"
    exact = floats.read(name).float()
    for storage, error in ((Storage(8), 0.02), (Storage(4, 24), 0.25), (STATIC, 0.02)):
        source = DummyIntegers(floats, {name: storage})
        integers, scale = read(source, name, torch.int8), read(source, f"{name}_scale", torch.float32)
        if storage.activations == "static":
            scale = scale / read(source, f"{stem}.input_scale", torch.float32)
            assert not read(source, f"{stem}.quant_bias", torch.int32).any()
        assert (integers * scale.flatten()[0] - exact).abs().max() < max(error, 1.5) * config.initializer_range
        assert (integers * scale.flatten()[0] - exact).abs().median() < error * config.initializer_range
        assert torch.equal(read(source, name, torch.int8, 1, 5, 20), integers[:, 5:20])
        assert torch.equal(read(source, name, torch.int8, 0, 3, 9), integers[3:9])


def logits_of(folder: str) -> list[list[float]]:
    """On the ranks of the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_reader, "read_scheme", lambda *_: MIXED)
        with LLM(folder, device="cpu", dtype="fp32", load_format="dummy", kv_blocks=2, max_seq_len=64) as llm:
            kinds = [module.stored.layout.bits for module in llm._runner.model.layers[0].attn.children()]
            assert kinds == [4, 8]
            return llm.prompt_logits([1, 2, 3, 4, 5]).tolist()


def test_weights_that_become_floats_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three layers have a quantised expert among experts of floats."""
    tiny.write_checkpoint(tmp_path, num_hidden_layers=4)
    with caplog.at_level(logging.INFO, "atb_models"):
        logits_of(str(tmp_path))
    (line,) = [record.getMessage() for record in caplog.records if "held as floats" in record.getMessage()]
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    assert line.startswith("3 quantised weights of the checkpoint, held as floats: ") and name in line


def test_a_model_of_all_storages_runs_and_is_the_same_on_ranks(tmp_path: Path, kept_ranks: KeptRanks) -> None:
    tiny.write_checkpoint(tmp_path)
    one = torch.tensor(logits_of(str(tmp_path)))
    assert one.isfinite().all() and one.std() > 1e-3
    four = torch.tensor(kept_ranks.run("tests.models.storages.test_dummy_integers:logits_of", 4, str(tmp_path)))
    assert (four - one).abs().max() <= 1e-4 * one.std()
