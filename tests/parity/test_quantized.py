"""Float activations against the plain implementation on the floats that integer weights stand for.

With the library and without.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atb_models import LLM
from tests.kept_ranks import KeptRanks
from tests.parity.checks import check_plain, check_quantized_by_torch
from tests.parity.plain import plain_logits
from tests.parity.test_golden import CHECKPOINTS as GOLDEN
from tests.quantized import dequantized
from tests.tiny import FAMILIES, write_checkpoint

CHECKPOINTS = ("deepseek", "qwen", "xverse")
FULL = pytest.mark.full
EVERY = [*CHECKPOINTS, *(pytest.param(name, marks=FULL) for name in GOLDEN if name not in CHECKPOINTS)]
# 3, 3 and 2 of 8 heads.
WITH_ZERO_HEADS = (("deepseek", 3, "w8a16"), ("qwen", 3, "w4a16"))


@pytest.mark.parametrize("quantize", ["w8a16", "w4a16"])
@pytest.mark.parametrize("name", EVERY)
def test_one_rank(shared: Path, name: str, quantize: str) -> None:
    check_plain(str(shared / "golden" / name), quantize)


@pytest.mark.parametrize("quantize", ["w8a16", pytest.param("w4a16", marks=FULL)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_one_rank_by_torch(shared: Path, name: str, quantize: str) -> None:
    check_quantized_by_torch(str(shared / "golden" / name), quantize)


@pytest.mark.parametrize("quantize", ["w8a16", pytest.param("w4a16", marks=FULL)])
@pytest.mark.parametrize("tp", [2, 4, pytest.param(8, marks=FULL)])
@pytest.mark.parametrize("name", EVERY)
def test_ranks(shared: Path, kept_ranks: KeptRanks, name: str, tp: int, quantize: str) -> None:
    kept_ranks.run("tests.parity.checks:check_plain", tp, str(shared / "golden" / name), quantize)


@pytest.mark.parametrize(
    ("name", "tp", "quantize"),
    [
        one if one in WITH_ZERO_HEADS else pytest.param(*one, marks=FULL)
        for one in product(CHECKPOINTS, (3, 5, 6, 7), ("w8a16", "w4a16"))
    ],
)
def test_ranks_with_zero_heads(shared: Path, kept_ranks: KeptRanks, name: str, tp: int, quantize: str) -> None:
    kept_ranks.run("tests.parity.checks:check_plain", tp, str(shared / "golden" / name), quantize)


@pytest.mark.parametrize("tp", [2, *(pytest.param(tp, marks=FULL) for tp in (3, 4))])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_ranks_by_torch(shared: Path, kept_ranks: KeptRanks, name: str, tp: int) -> None:
    kept_ranks.run("tests.parity.checks:check_quantized_by_torch", tp, str(shared / "golden" / name))


@pytest.mark.parametrize(
    ("name", "tp"),
    [("deepseek", 4), *(pytest.param(*one, marks=FULL) for one in product(CHECKPOINTS, (1, 2, 3, 4, 5, 8)))],
)
def test_groups_that_ranks_cut(shared: Path, kept_ranks: KeptRanks, name: str, tp: int) -> None:
    """Groups of 48: the last of 64 and of 128 inputs is shorter, and 16, 32 and 8 inputs of a rank cut them."""
    kept_ranks.run("tests.parity.checks:check_cut_groups", tp, str(shared / "golden" / name), 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_widths_biases_grouped_heads_and_a_tied_head(family: str, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    """Four ranks fill the widths up with zeros; biases where the family has them as an option."""
    narrow = "intermediate_size" if family == "xverse" else "moe_intermediate_size"
    bias = {"attention_bias": True} if family != "qwen" else {}
    write_checkpoint(tmp_path, family=family, **{narrow: 27}, **bias, num_key_value_heads=2, tie_word_embeddings=True)
    check_plain(str(tmp_path), "w8a16")
    kept_ranks.run("tests.parity.checks:check_plain", 4, str(tmp_path), "w8a16")
    kept_ranks.run("tests.parity.checks:check_plain", 4, str(tmp_path), "w4a16")


def test_the_measure_tells_integers_from_floats(shared: Path) -> None:
    """Quantised weights do change the logits by far more than the tolerance, and the engine's model has them."""
    folder, token_ids = shared / "golden" / "deepseek", list(range(5, 40))
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    exact = plain_logits(config, tensors, token_ids)
    for quantize in "w8a16", "w4a16":
        assert (exact - plain_logits(config, dequantized(tensors, quantize), token_ids)).abs().max() > 2e-3
        with LLM(folder, dtype="fp32", device="cpu", quantize=quantize) as llm:
            assert (llm.prompt_logits(token_ids) - exact).abs().max() > 2e-3
