"""A plan's text and JSON, from inside: what a machine at hand does not show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.models.config import load_model_config
from atb_models.plan.capacity import Deployment
from atb_models.plan.memory import Limits
from atb_models.plan.plan import Plan, make_plan, to_json
from atb_models.plan.report import to_text
from tests.plan.test_roofline import CHIP


@pytest.fixture(scope="module")
def plan(demo: Path) -> Plan:
    ops.bind("cpu")
    deployment = Deployment(load_model_config(demo, log=False), torch.float16, 2, Limits(1, 512, 1024, 128))
    return make_plan("somewhere", "fp16", deployment, 1 << 30, {CHIP.name: CHIP})


def test_what_this_machine_holds(plan: Plan) -> None:
    tokens = plan.kv_tokens_here
    assert tokens and f"1.00 GiB for each rank: {tokens:,} tokens of KV fit" in to_text(plan, [])
    assert "1.0 MiB for each rank: the model does not fit" in to_text(replace(plan, here=1 << 20), [])
    unknown = replace(plan, here=None)
    assert "this machine   has fewer devices than 2 ranks need" in to_text(unknown, [])
    assert to_json(unknown)["memory"]["kv_tokens_here"] is None


def test_a_machine_whose_chip_is_not_in_the_table(plan: Plan) -> None:
    assert to_text(plan, []).rstrip().endswith("--chip NAME lists the times of one in full")
    assert "--chip" not in to_text(plan, [CHIP.name])


def test_a_chip_shared_by_the_ranks_has_less_room_for_each(plan: Plan) -> None:
    big = next(cell for cell in plan.cells[CHIP.name] if cell.batch == 64 and cell.prompt == 2048)
    needed = 64 * 32 * plan.memory.kv_block + plan.memory.weights + plan.memory.activations
    chip = replace(CHIP, memory_gb=2 * needed / (1 << 30), shared=True)
    assert plan.holds(chip, big)
    assert not plan.holds(replace(chip, memory_gb=chip.memory_gb * 0.99), big)
    assert not plan.holds(replace(chip, shared=False, memory_gb=needed / (1 << 30)), big)  # 3 GiB are kept free


def test_json_has_every_figure(plan: Plan) -> None:
    found = json.loads(json.dumps(to_json(plan)))
    chip = found["chips"][CHIP.name]
    assert chip["figures"]["bf16_tflops"] == {"value": None, "source": "a test"}
    assert len(chip["times"]) == 28 and set(chip["times"][0]) == {
        "prompt", "answer", "batch", "fits", "first_token_s", "per_token_s", "tokens_per_second",
    }  # fmt: skip
    assert set(chip["times"][0]["per_token_s"]) == {"compute", "memory", "communication", "total"}
    assert [row["cards"] for row in found["cards"]] == [1, 2, 4, 8]
