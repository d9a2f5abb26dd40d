"""Parameters are counted as the checkpoint has them."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from atb_models.models.config_reader import load_model_config
from atb_models.plan.parameters import count_parameters
from tests.wide_latent import PUBLISHED


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("deepseek-moe-16b-base", 16_375_728_128, 2_828_650_496),
        ("qwen1.5-moe-a2.7b-chat", 14_315_784_192, 2_689_173_504),
        ("xverse-moe-a4.2b", 25_778_352_640, 4_226_183_680),
    ],
)
def test_the_real_models(shared: Path, name: str, total: int, active: int) -> None:
    assert count_parameters(load_model_config(shared / "headers" / name, log=False)) == (total, active)


@pytest.mark.parametrize(
    ("name", "total", "active"), [("v2_lite", 15.71, 2.66), ("v2", 235.7, 21.4), ("v3", 671.0, 37.6)]
)
def test_models_with_latent_attention(tmp_path: Path, name: str, total: float, active: float) -> None:
    """As their cards say, in billions; V3 without the layer that predicts further tokens."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    counted = count_parameters(load_model_config(tmp_path, log=False))
    assert counted.total / 1e9 == pytest.approx(total, abs=total / 2e3)
    assert counted.active / 1e9 == pytest.approx(active, abs=0.05)


def test_the_embedded_checkpoint_against_its_files(demo: Path) -> None:
    total = routed = 0
    for file in demo.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__":
                total += prod(tensor["shape"])
                routed += prod(tensor["shape"]) if ".mlp.experts." in name else 0
    config = load_model_config(demo, log=False)
    assert config.num_experts_per_tok / config.num_experts == 1 / 4
    assert count_parameters(config) == (total, total - routed * 3 // 4)


def test_a_model_of_very_many_layers_is_counted_by_kind(demo: Path) -> None:
    config = load_model_config(demo, log=False)
    one, two = (replace(config, num_hidden_layers=n, moe_layers=(False, *[True] * (n - 1))) for n in (2, 3))
    many = replace(config, num_hidden_layers=100_000, moe_layers=(False, *[True] * 99_999))
    layer = count_parameters(two).total - count_parameters(one).total
    assert count_parameters(many).total == count_parameters(one).total + 99_998 * layer


def test_without_experts_all_are_active_and_a_tied_head_counts_once(demo: Path) -> None:
    config = load_model_config(demo, log=False)
    dense = replace(config, moe_layers=(False,) * config.num_hidden_layers)
    counts = count_parameters(dense)
    assert counts.total == counts.active
    tied = count_parameters(replace(dense, tie_word_embeddings=True))
    head = config.vocab_size * config.hidden_size
    assert tied.total == counts.total - (0 if config.tie_word_embeddings else head)
