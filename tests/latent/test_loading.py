"""What is loaded of a checkpoint with latent attention, what is left out, and where it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.errors import CheckpointError, ConfigError
from atb_models.graph import meta_model
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights
from atb_models.ops import table
from tests.records import build_of
from tests.tiny import write_weights
from tests.tiny_latent import DEEPSEEK_V3, latent_tensors, write_latent


@pytest.fixture(autouse=True)
def plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATB_CPU_ISA", "reference")
    ops.bind("reference")


def loaded(folder: Path, rank: int = 0, size: int = 1) -> Decoder:
    config = load_model_config(folder)
    model = build_model(config, build_of(torch.float32, rank, size))
    source = open_weights(folder, "auto", model, config)
    load_weights(model, config, source)
    return model


@pytest.mark.parametrize(("declared", "problem"), [(1, None), (2, None), (0, r"tensor model\.layers\.3\.")])
def test_only_declared_layers_are_left_out(tmp_path: Path, declared: int, problem: str | None) -> None:
    """A layer that predicts further tokens, which is there; config.json may tell of more."""
    write_latent(tmp_path, "deepseek_v3")
    write_weights(tmp_path, latent_tensors(DEEPSEEK_V3 | {"num_nextn_predict_layers": 1}))
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3 | {"num_nextn_predict_layers": declared}))
    if problem is None:
        assert len(loaded(tmp_path).layers) == 3
        return
    with pytest.raises(CheckpointError, match=problem):
        loaded(tmp_path)


def test_shares_of_heads_and_what_is_whole(tmp_path: Path) -> None:
    """5 heads on 3 ranks: the last has one and a head of zeros. The rotated values of a head come first, even places
    before odd ones."""
    tensors = write_latent(tmp_path, "deepseek_v2", num_attention_heads=5)
    name = "model.layers.1.self_attn"
    q, kv_b, o = (tensors[f"{name}.{role}_proj.weight"].float() for role in ("q", "kv_b", "o"))
    kv_a = tensors[f"{name}.kv_a_proj_with_mqa.weight"].float()
    pairs = [0, 2, 4, 6, 1, 3, 5, 7]
    q_heads = q.view(5, 20, -1)[:, [*(12 + place for place in pairs), *range(12)]]
    for rank, heads in enumerate(([0, 1], [2, 3], [4])):
        attention = loaded(tmp_path, rank, 3).layers[1].attn
        assert torch.equal(attention.kv_a.weight, kv_a[[*range(40), *(40 + place for place in pairs)]])
        zeros = 2 - len(heads)
        for ours, theirs in ((attention.q.weight.view(2, 20, -1), q_heads),
                             (attention.kv_b.weight.view(2, 22, -1), kv_b.view(5, 22, -1)),
                             (attention.o.weight.view(-1, 2, 10).transpose(0, 1), o.view(-1, 5, 10).transpose(0, 1))):
            assert torch.equal(ours[: len(heads)], theirs[heads])
            assert zeros == 0 or not ours[-zeros:].any()


def test_a_bias_of_what_attention_takes_apart_is_unexpected(tmp_path: Path) -> None:
    tensors = write_latent(tmp_path, "deepseek_v2")
    tensors["model.layers.0.self_attn.kv_b_proj.bias"] = torch.zeros(176)
    write_weights(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"kv_b_proj\.bias is unexpected"):
        loaded(tmp_path)


def test_a_device_without_it_refuses_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latent(tmp_path, "deepseek_v2")
    monkeypatch.setattr(table, "_bound", ("npu", table.Backend({}, latent_attention=False)))
    with pytest.raises(ConfigError, match=r"npu serves no latent attention yet.* use another device"):
        meta_model(load_model_config(tmp_path), torch.float16)
