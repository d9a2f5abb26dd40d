"""A family that nobody has published, by nothing but an entry of the registry: how little a new one takes.

Its queries and keys are normed, its experts chosen by sigmoids with a bias, and its tensors have names of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import LLM, SamplingParams
from atb_models.models.config import ModelConfig
from atb_models.models.config_fields import Fields
from atb_models.models.families import FAMILIES
from atb_models.models.family import Family
from atb_models.models.weights.names import CheckpointTensor, TensorNames, attention_tensors
from tests.kept_ranks import KeptRanks
from tests.parity.plain import plain_logits
from tests.tiny import QWEN3_MOE, random_tensors, shapes_of, write_weights

CONFIG: dict[str, Any] = QWEN3_MOE | {
    "scoring_func": "sigmoid", "num_key_value_heads": 2, "sliding_window": None,
}  # fmt: skip
NAMES = TensorNames(
    gate="in_a", up="in_b", down="out", experts="ffn.bank", router="ffn.choice.weight", router_bias="ffn.choice.shift"
)
PROMPT = list(range(3, 40))
RENAMED = {
    "self_attn.": "mix.", "_proj": "_map", "mlp.experts": "ffn.bank", "mlp.gate.": "ffn.choice.",
    "e_score_correction_bias": "shift", "gate_map": "in_a", "up_map": "in_b", "down_map": "out",
}  # fmt: skip


def parse_config(fields: Fields) -> dict[str, Any]:
    fields.choice("scoring_func", ("sigmoid",))
    return {
        "qkv_bias": False,
        "o_bias": False,
        "qk_norm": "head",
        "moe_layers": (True,) * fields.integer("num_hidden_layers"),
        "num_experts": fields.integer("num_experts"),
        "num_experts_per_tok": fields.integer("num_experts_per_tok"),
        "moe_intermediate_size": fields.integer("moe_intermediate_size"),
        "router_score": "sigmoid",
        "router_bias": True,
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
    }


def own_tensors(config: ModelConfig, theirs: str, ours: str) -> Iterator[CheckpointTensor]:
    for tensor in attention_tensors(config, theirs, ours):
        yield tensor._replace(name=renamed(tensor.name))


def renamed(name: str) -> str:
    for others, own in RENAMED.items():
        name = name.replace(others, own)
    return name


def logits_of(folder: str, token_ids: list[int]) -> list[list[float]]:
    """What the ranks call; the registry is theirs for this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "made_up", Family(parse_config, "", names=NAMES, attention_tensors=own_tensors))
        with LLM(folder, dtype="fp32", device="cpu", block_size=16, max_prefill_tokens=16) as llm:
            llm.generate([token_ids], SamplingParams(max_tokens=3, temperature=0))
            return llm.prompt_logits(token_ids).tolist()


@pytest.mark.parametrize(("tp", "library"), [(1, False), (1, True), (2, True)])
def test_logits(tp: int, library: bool, tmp_path: Path, kept_ranks: KeptRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch and by the CPU's library, which conftest.py keeps away."""
    if library:
        monkeypatch.delenv("ATB_CPU_ISA")
    biases = {f"model.layers.{i}.mlp.gate.e_score_correction_bias": (9,) for i in range(CONFIG["num_hidden_layers"])}
    tensors = random_tensors(shapes_of(CONFIG) | biases, std=0.1, dtype=torch.float32)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "made_up"}))
    write_weights(tmp_path, {renamed(name): tensor for name, tensor in tensors.items()})
    exact, given = plain_logits(CONFIG, tensors, PROMPT), (str(tmp_path), PROMPT)
    ranks = "tests.models.test_made_up_family:logits_of"
    found = logits_of(*given) if tp == 1 else kept_ranks.run(ranks, tp, *given)
    assert (torch.tensor(found) - exact).abs().max() <= 2e-4
