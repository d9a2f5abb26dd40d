"""W8A16 against the plain implementation on the floats that the weights stand for, with the library and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atb_models import LLM
from tests.kept_ranks import KeptRanks
from tests.parity.checks import check_plain, check_quantized_by_torch
from tests.parity.plain import plain_logits
from tests.quantized import dequantized
from tests.tiny import FAMILIES, write_checkpoint

CHECKPOINTS = ("deepseek", "qwen", "xverse")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_one_rank(shared: Path, name: str) -> None:
    check_plain(str(shared / "golden" / name), "w8a16")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_one_rank_by_torch(shared: Path, name: str) -> None:
    check_quantized_by_torch(str(shared / "golden" / name))


@pytest.mark.parametrize("tp", [2, 4, pytest.param(8, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_ranks(shared: Path, kept_ranks: KeptRanks, name: str, tp: int) -> None:
    kept_ranks.run("tests.parity.checks:check_plain", tp, str(shared / "golden" / name), "w8a16")


@pytest.mark.parametrize("tp", [2, pytest.param(4, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_ranks_by_torch(shared: Path, kept_ranks: KeptRanks, name: str, tp: int) -> None:
    kept_ranks.run("tests.parity.checks:check_quantized_by_torch", tp, str(shared / "golden" / name))


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_widths_biases_grouped_heads_and_a_tied_head(family: str, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    """Four ranks fill the widths up with zeros; biases where the family has them as an option."""
    narrow = "intermediate_size" if family == "xverse" else "moe_intermediate_size"
    bias = {"attention_bias": True} if family != "qwen" else {}
    write_checkpoint(tmp_path, family=family, **{narrow: 27}, **bias, num_key_value_heads=2, tie_word_embeddings=True)
    check_plain(str(tmp_path), "w8a16")
    kept_ranks.run("tests.parity.checks:check_plain", 4, str(tmp_path), "w8a16")


def test_the_measure_tells_int8_from_floats(shared: Path) -> None:
    """Quantised weights do change the logits by far more than the tolerance, and the int8 model has them."""
    folder, token_ids = shared / "golden" / "deepseek", list(range(5, 40))
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    exact, rounded = (plain_logits(config, weights, token_ids) for weights in (tensors, dequantized(tensors)))
    assert (exact - rounded).abs().max() > 2e-3
    with LLM(folder, dtype="fp32", device="cpu", quantize="w8a16") as llm:
        assert (llm.prompt_logits(token_ids) - exact).abs().max() > 2e-3
