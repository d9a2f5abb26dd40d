"""A family that brings tensor names, an attention and a gating of its own, by nothing but an entry of the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from atb_models import LLM
from atb_models.errors import ConfigError
from atb_models.layers.attention import Attention
from atb_models.layers.build import Build
from atb_models.layers.norm import RmsNorm
from atb_models.models.config import ModelConfig
from atb_models.models.config_fields import Fields
from atb_models.models.config_reader import load_model_config
from atb_models.models.families import FAMILIES, deepseek
from atb_models.models.weights.names import CheckpointTensor, TensorNames, attention_tensors
from tests.parity.plain import plain_logits
from tests.tiny import DEEPSEEK, random_tensors, shapes_of, write_weights

NAMES = TensorNames(
    gate="w1", up="w3", down="w2", experts="block_sparse_moe.experts", router="block_sparse_moe.gate.weight",
    router_bias="block_sparse_moe.gate.bias",
)  # fmt: skip


class NormedAttention(Attention):
    """Norms each head's query and key before the rotation."""

    def __init__(self, build: Build, config: ModelConfig, is_moe: bool) -> None:
        super().__init__(
            build, config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
            qkv_bias=config.qkv_bias, o_bias=config.o_bias,
        )  # fmt: skip
        self.q_norm = RmsNorm(build, config.head_dim, config.rms_norm_eps)
        self.k_norm = RmsNorm(build, config.head_dim, config.rms_norm_eps)

    def before_rotation(self, q_TND: Tensor, k_TMD: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q_TND), self.k_norm(k_TMD)


def normed_tensors(config: ModelConfig, theirs: str, ours: str) -> Iterator[CheckpointTensor]:
    yield from attention_tensors(config, theirs, ours)
    for role in ("q", "k"):
        yield CheckpointTensor(f"{theirs}.self_attn.{role}_norm.weight", f"{ours}.attn.{role}_norm.weight", "")


def parse_config(fields: Fields) -> dict[str, Any]:
    return deepseek.parse_config(fields) | {
        "router_bias": fields.flag("biased", False),
        "expert_groups": fields.integer("n_group", 1),
        "top_expert_groups": fields.integer("topk_group", 1),
        "expert_group_score": fields.choice("group_score", ("max", "top2"), "max"),
    }


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(
        deepseek.FAMILY, parse_config=parse_config, names=NAMES, attention=NormedAttention,
        attention_tensors=normed_tensors,
    )  # fmt: skip
    monkeypatch.setitem(FAMILIES, "normed", own)


def renamed(name: str) -> str:
    for theirs, ours in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
        name = name.replace(theirs, ours)
    return name.replace("mlp.experts.", "block_sparse_moe.experts.").replace("mlp.gate.", "block_sparse_moe.gate.")


def write(folder: Path, **fields: Any) -> dict[str, Tensor]:
    """A checkpoint of the family -> its tensors by DeepSeek's names."""
    config = {**DEEPSEEK, **fields}
    shapes = shapes_of(config)
    for layer in range(config["num_hidden_layers"]):
        head = config["hidden_size"] // config["num_attention_heads"]
        shapes |= {f"model.layers.{layer}.self_attn.{role}_norm.weight": (head,) for role in ("q", "k")}
    tensors = random_tensors(shapes, std=0.05, dtype=torch.float32)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "normed"}))
    return tensors


@pytest.mark.parametrize("library", [False, True])
def test_names_and_attention_of_a_family(
    tmp_path: Path, family: None, monkeypatch: pytest.MonkeyPatch, library: bool
) -> None:
    """By torch and, where there is one, by the CPU's library: the norm of the heads has three dimensions."""
    if library:
        monkeypatch.delenv("ATB_CPU_ISA")  # see conftest.py
    tensors = write(tmp_path)
    write_weights(tmp_path, {renamed(name): tensor for name, tensor in tensors.items()})
    exact = plain_logits(DEEPSEEK, tensors, list(range(3, 40)))
    with LLM(tmp_path, dtype="fp32", device="cpu", block_size=16) as llm:
        assert (llm.prompt_logits(list(range(3, 40))).double() - exact).abs().max() < 2e-4


def test_a_routers_bias_takes_part_in_the_choice_alone(tmp_path: Path, family: None) -> None:
    """One that lifts four experts above all others: the weights stay those of the plain scores."""
    tensors = write(tmp_path, biased=True, num_hidden_layers=2)
    biases = {
        f"model.layers.{layer}.block_sparse_moe.gate.bias": torch.tensor([9.0] * 3 + [0.0] * 5)
        for layer in range(DEEPSEEK["first_k_dense_replace"], 2)
    }
    write_weights(tmp_path, {renamed(name): tensor for name, tensor in tensors.items()} | biases)
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
