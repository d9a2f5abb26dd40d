"""What a plan says of zeros that fill up the shapes of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.limits import Limits
from atb_models.models.config_reader import load_model_config
from atb_models.plan.capacity import Deployment
from atb_models.plan.padding import count_padding
from atb_models.plan.plan import Plan, make_plan, to_json
from atb_models.plan.report import to_text
from tests.plan.test_roofline import CHIP
from tests.tiny import write_checkpoint


@pytest.fixture
def plain_weights() -> None:
    ops.bind("reference")


def padding_of(plan: Plan, folder: Path, ranks: int, **fields: Any) -> tuple[list[str], dict[str, Any]]:
    """The lines of a plan on padding, and its JSON's; of a small model in the place of the plan's own."""
    write_checkpoint(folder, **fields)
    padding = count_padding(load_model_config(folder, log=False), torch.float32, ranks)
    text = to_text(replace(plan, padding=padding), [])
    assert max(map(len, text.splitlines())) <= 100
    memory = text[text.index("in blocks of 128 tokens\n") : text.index("  this machine")]
    found: dict[str, Any] = to_json(replace(plan, padding=padding))["memory"]["padding"]
    return [line.strip() for line in memory.splitlines()[1:]], found


@pytest.fixture(scope="module")
def plan(demo: Path) -> Plan:
    ops.bind("cpu")
    deployment = Deployment(load_model_config(demo, log=False), torch.float16, 2, Limits(1, 512, 1024, 128))
    return make_plan("somewhere", "fp16", deployment, 1 << 30, {CHIP.name: CHIP})


@pytest.mark.usefixtures("plain_weights")
def test_numbers_by_hand(tmp_path: Path) -> None:
    """A layer without experts: 8 heads of 8, a hidden size of 64, a width of 97 and a vocabulary of 256, in fp32."""
    write_checkpoint(tmp_path, n_routed_experts=None, num_hidden_layers=1, intermediate_size=97)
    config = load_model_config(tmp_path, log=False)
    copies = 258 * 64 + 3 * 64  # of the embedding with 2 rows more, and three norms
    held = 3 * (copies + 4 * (3 * 8 * 64) + 3 * (33 * 64) + 86 * 64)
    zeros = 3 * 2 * 64 + 4 * 8 * 64 + 3 * 2 * 64 + 2 * 64
    padding = count_padding(config, torch.float32, 3)
    assert padding.weights == pytest.approx(zeros / held)
    assert padding.kv_per_token == pytest.approx(1 / 9)
    assert (padding.shares.heads, padding.shares.zero_heads, padding.without_heads) == (3, 1, 0)
    with pytest.raises(ConfigError, match="9 ranks cannot share 8 attention heads"):
        count_padding(config, torch.float32, 9)


def test_nothing_is_said_where_all_divides(plan: Plan, tmp_path: Path) -> None:
    for ranks in (1, 2, 4, 8):
        lines, found = padding_of(plan, tmp_path, ranks, num_key_value_heads=4)
        assert lines == [] and found["weights"] == found["kv_per_token"] == found["zero_heads"] == 0


def test_the_line(plan: Plan, tmp_path: Path) -> None:
    (line,), found = padding_of(plan, tmp_path, 3)
    share = f"{100 * found['weights']:.1f}"
    assert line == f"padding        {share} % of the weights, 11.1 % of the KV cache are zeros: 3 heads a rank, 9 for 8"
    assert 0.01 < found["weights"] < 0.1
    assert (found["heads_of_a_rank"], found["zero_heads"], found["ranks_without_heads"]) == (3, 1, 0)
    (line,), found = padding_of(plan, tmp_path, 4, moe_intermediate_size=33)
    assert line == f"padding        {100 * found['weights']:.1f} % of the weights, 0.0 % of the KV cache are zeros"


def test_ranks_without_a_head_and_copies(plan: Plan, tmp_path: Path) -> None:
    """Of 6 ranks 4 hold two of 8 heads. Copies of KV heads are no padding."""
    lines, found = padding_of(plan, tmp_path, 6)
    assert lines[0].endswith("33.3 % of the KV cache are zeros: 2 heads a rank, 12 for 8")
    assert lines[1:] == ["2 ranks without a head of the model"] and found["ranks_without_heads"] == 2
    lines, found = padding_of(plan, tmp_path, 5, num_key_value_heads=2)
    assert lines[0].endswith("20.0 % of the KV cache are zeros: 2 heads a rank, 10 for 8")
    assert lines[1:] == ["1 rank without a head of the model"] and found["kv_per_token"] == pytest.approx(0.2)


@pytest.mark.parametrize("ranks", [3, 5, 6, 7])
def test_zeros_cost_little_at_published_widths(shared: Path, ranks: int) -> None:
    """XVERSE has 32 heads: 33, 35, 36 and 35 of these ranks."""
    config = load_model_config(shared / "headers" / "xverse-moe-a4.2b", log=False)
    padding = count_padding(config, torch.float16, ranks)
    assert padding.shares.zero_heads == -32 % ranks and not padding.without_heads
    assert padding.kv_per_token == pytest.approx(padding.shares.zero_kv_heads / (ranks * padding.shares.heads))
    assert 0 < padding.weights < 0.02
