"""A family that chooses its experts in ways that ModelConfig knows: by a bias, within groups."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import LLM
from atb_models.errors import ConfigError
from atb_models.models.config_fields import Fields
from atb_models.models.config_reader import load_model_config
from atb_models.models.families import FAMILIES, deepseek
from tests.tiny import DEEPSEEK, random_tensors, shapes_of, write_weights


def parse_config(fields: Fields) -> dict[str, Any]:
    return deepseek.parse_config(fields) | {
        "router_bias": fields.flag("biased", False),
        "expert_groups": fields.integer("n_group", 1),
        "top_expert_groups": fields.integer("topk_group", 1),
        "expert_group_score": fields.choice("group_score", ("max", "top2"), "max"),
    }


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "chosen", replace(deepseek.FAMILY, parse_config=parse_config))


def write(folder: Path, **fields: Any) -> dict[str, Tensor]:
    """The config.json of a checkpoint of the family -> its tensors, but for biases."""
    config = {**DEEPSEEK, **fields}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "chosen"}))
    return random_tensors(shapes_of(config), std=0.05, dtype=torch.float32)


def test_a_routers_bias_takes_part_in_the_choice_alone(tmp_path: Path, family: None) -> None:
    """One that lifts four experts above all others: the weights stay those of the plain scores."""
    tensors = write(tmp_path, biased=True, num_hidden_layers=2)
    biases = {
        f"model.layers.{layer}.mlp.gate.e_score_correction_bias": torch.tensor([9.0] * 3 + [0.0] * 5)
        for layer in range(DEEPSEEK["first_k_dense_replace"], 2)
    }
    write_weights(tmp_path, tensors | biases)
    with LLM(tmp_path, dtype="fp32", device="cpu", block_size=16) as llm:
        layer = llm._runner.model.layers[-1].mlp
        assert layer.router.bias.tolist() == [9.0] * 3 + [0.0] * 5
        counter = layer.count_tokens()
        llm.prompt_logits(list(range(3, 20)))
        assert counter.tolist() == [17] * 3 + [0] * 5


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"n_group": 3}, "3 groups are not equal"),
        ({"n_group": 4, "topk_group": 5}, "5 of 4 groups cannot be chosen"),
        ({"n_group": 4, "num_experts_per_tok": 3}, "the best groups hold 2, fewer than the 3 of a token"),
        ({"topk_group": 2}, "2 of 1 groups cannot be chosen"),
        ({"n_group": 8, "topk_group": 3, "group_score": "top2"}, "a group of one expert has no two best"),
        ({"n_group": 8, "topk_group": 3}, None),
        ({"n_group": 4, "topk_group": 2, "group_score": "top2"}, None),
    ],
)
def test_groups_that_cannot_be_chosen_from(
    tmp_path: Path, family: None, fields: dict[str, Any], problem: str | None
) -> None:
    """Experts outside the best groups must never be taken, so these must hold enough."""
    write(tmp_path, **fields)
    if problem is None:
        assert load_model_config(tmp_path).expert_groups == fields["n_group"]
        return
    with pytest.raises(ConfigError, match=f"config.json: 8 experts: {problem}"):
        load_model_config(tmp_path)
