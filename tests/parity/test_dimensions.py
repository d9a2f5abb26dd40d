"""The published models' own dimensions, with random weights and few layers: every number of ranks gives one result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import LLM
from atb_models.machine.memory import free_memory
from atb_models.models.config_reader import load_model_config
from tests.kept_ranks import KeptRanks
from tests.tiny import LLAMA, MIXTRAL, QWEN3_MOE

NAMES = ("deepseek-moe-16b-base", "qwen1.5-moe-a2.7b-chat", "xverse-moe-a4.2b")
# Fewer of what is many only: every width stays. The vocabulary divides by neither 4 nor 8.
FEW = {"num_hidden_layers": 1, "vocab_size": 1002}
FEW_EXPERTS: dict[str, dict[str, Any]] = {
    "deepseek-moe-16b-base": {"first_k_dense_replace": 0, "n_routed_experts": 8},
    "qwen1.5-moe-a2.7b-chat": {"num_experts": 8, "eos_token_id": 2, "bos_token_id": 1},
    "xverse-moe-a4.2b": {"num_experts": 8},
}
NEEDED = 17 << 30
# Fields that the tiny configurations have otherwise; and the layers, of which a rank of a few has room.
DENSE = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 4096}
LATER: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen3-30B-A3B": (
        QWEN3_MOE
        | {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "hidden_size": 2048}
        | {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936},
        2,
    ),
    "Mixtral-8x7B": (MIXTRAL | DENSE | {"intermediate_size": 14336, "vocab_size": 32000}, 1),
    "Llama-3.1-8B": (
        LLAMA
        | DENSE
        | {"intermediate_size": 14336, "vocab_size": 128256, "rope_theta": 500000.0}
        | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 8192}},
        1,
    ),
}  # fmt: skip
TOKENS = torch.randint(3, 1000, (24,), generator=torch.Generator().manual_seed(1)).tolist()


def logits(folder: str, fields: dict[str, Any]) -> list[list[float]]:
    """On the ranks of the environment."""
    with LLM(
        folder, dtype="fp32", device="cpu", load_format="dummy", config_overrides=fields,
        kv_blocks=2, max_batch_size=1, max_seq_len=256,
    ) as llm:  # fmt: skip
        return llm.prompt_logits(TOKENS).tolist()


def skip_without(needed: int) -> None:
    available = free_memory(torch.device("cpu")).of_rank(1)
    if available < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free memory, {available >> 30} are")


def check(ranks: KeptRanks, folder: Path, fields: dict[str, Any], sizes: tuple[int, ...]) -> None:
    results = [ranks.run("tests.parity.test_dimensions:logits", tp, str(folder), fields) for tp in sizes]
    one, *others = map(torch.tensor, results)
    assert one.shape == (len(TOKENS), load_model_config(folder, fields, log=False).vocab_size)
    assert one.std() > 0.1
    for other in others:
        assert (one - other).abs().max() <= 2e-4
        assert torch.equal(one.argmax(dim=1), other.argmax(dim=1))


@pytest.mark.parametrize("name", NAMES)
def test_few_experts_on_four_ranks(name: str, shared: Path, kept_ranks: KeptRanks) -> None:
    check(kept_ranks, shared / "headers" / name, {**FEW, **FEW_EXPERTS[name]}, (1, 4))


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_few_experts_on_numbers_that_divide_nothing(name: str, shared: Path, kept_ranks: KeptRanks) -> None:
    """Neither heads, 16 or 32, nor widths, 1408 or 1728, nor the vocabulary; XVERSE's 32 heads are 11 on each of 3."""
    check(kept_ranks, shared / "headers" / name, {**FEW, **FEW_EXPERTS[name]}, (1, 3, 5, 7))


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_whole_layers_on_eight_ranks(name: str, shared: Path, kept_ranks: KeptRanks) -> None:
    """Each of the 8 ranks holds the whole embedding: up to 16 GiB at once."""
    skip_without(NEEDED)
    layers = 2 if name.startswith("deepseek") else 1  # DeepSeek's first is dense
    check(kept_ranks, shared / "headers" / name, {"num_hidden_layers": layers}, (1, 4, 8))


@pytest.mark.full
@pytest.mark.parametrize("name", LATER)
def test_whole_layers_of_later_families(name: str, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    """Up to 10 GiB at once, most of it embeddings. Three ranks share neither the heads evenly nor most widths."""
    skip_without(11 << 30)
    fields, layers = LATER[name]
    (tmp_path / "config.json").write_text(json.dumps(fields | {"initializer_range": 0.02}))
    check(kept_ranks, tmp_path, {"num_hidden_layers": layers}, (1, 3))
