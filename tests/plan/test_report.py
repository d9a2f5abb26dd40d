"""A plan's text and JSON, from inside: what a machine at hand does not show."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atb_models import ops
from atb_models.limits import Limits
from atb_models.models.config_reader import load_model_config
from atb_models.plan.capacity import Deployment
from atb_models.plan.chips import FIGURES
from atb_models.plan.plan import Plan, make_plan, to_json
from atb_models.plan.report import to_text
from tests.plan.test_roofline import CHIP


@pytest.fixture(scope="module")
def plan(demo: Path) -> Plan:
    ops.bind("cpu")
    deployment = Deployment(load_model_config(demo, log=False), torch.float16, 2, Limits(1, 512, 1024, 128))
    return make_plan("somewhere", "fp16", deployment, 1 << 30, {CHIP.name: CHIP})


def test_what_this_machine_holds(plan: Plan) -> None:
    assert plan.kv_tokens_here == 1024 and plan.missing_here == 0
    assert "1.00 GiB for each rank: 1,024 tokens of KV, a full batch\n" in to_text(plan, [])
    assert "1.0 MiB for each rank: the model does not fit" in to_text(replace(plan, here=1 << 20), [])
    least = plan.memory.weights + plan.memory.activations + 3 * plan.memory.kv_block
    assert re.search("for each rank: [0-9]{3} tokens of KV, all that fits\n", to_text(replace(plan, here=least), []))
    asked = replace(plan, kv_blocks=2)
    assert "1.00 GiB for each rank: --kv_blocks 2 fits, 256 tokens of KV\n" in to_text(asked, [])
    many = replace(plan, kv_blocks=10**6)
    missing = plan.memory.weights + plan.memory.activations + 10**6 * plan.memory.kv_block - (1 << 30)
    assert many.missing_here == missing and many.kv_tokens_here == 0
    assert f"--kv_blocks 1000000 does not fit, {missing / (1 << 30):.2f} GiB are missing\n" in to_text(many, [])
    alone = replace(plan, deployment=replace(plan.deployment, size=1))
    assert "1.00 GiB for the process: " in to_text(alone, [])
    unknown = replace(plan, here=None)
    assert "this machine   has fewer devices than 2 ranks need" in to_text(unknown, [])
    assert to_json(unknown)["memory"]["kv_tokens_here"] is None


def test_one_of_a_thing_is_singular(plan: Plan) -> None:
    few = replace(plan, deployment=replace(plan.deployment, limits=Limits(1, 1, 1, 1)))
    text = to_text(replace(few, memory=replace(plan.memory, block_size=1)), [])
    assert "at most 1 prompt token a step, 1 sequence of 1 token\n" in text and "in blocks of 1 token\n" in text
    assert "largest step: 1 token in 1 sequence" in text and "are read, 1 token a step" in text


def test_the_column_is_as_wide_as_the_longest_name(plan: Plan) -> None:
    name = "A name that nobody would give to a chip"
    named = replace(plan, chips={name: replace(CHIP, name=name)}, cells={name: plan.cells[CHIP.name]})
    table = to_text(named, []).split("roofline times")[1].splitlines()
    assert table[4].startswith("  A name that nobody wo...     1 ") and len({len(line) for line in table[2:6]}) == 1
    assert max(map(len, table)) <= 100
    assert to_text(plan, []).split("roofline times")[1].splitlines()[4].startswith("  small     1 ")


def test_cells_of_a_model_beyond_a_tebibyte_stay_apart(plan: Plan) -> None:
    large = [replace(fit, memory=replace(plan.memory, weights=1300 << 30)) for fit in plan.fits]
    row = to_text(replace(plan, fits=large), []).split("rule of thumb\n")[1].splitlines()[0]
    assert re.fullmatch(r" +1 +1300\.\d\d GiB a card( +lacks 1\d{3}\.\d\d GiB){3} +[\d.]+ MiB", row)


def test_figures_without_a_source_are_named(plan: Plan) -> None:
    assert "without a source" not in to_text(plan, [])
    for unknown, said in (
        (["memory_gb", "link_gb_s"], "memory_gb, link_gb_s"),
        ([name for name in FIGURES if name not in ("link_gb_s", "bf16_tflops")], "all but bf16_tflops, link_gb_s"),
    ):
        sources = {name: "none: x" if name in unknown else "a test" for name in FIGURES}
        chip = replace(CHIP, int8_tops=4, sources=sources)
        assert f"figures without a source - small: {said}\n" in to_text(replace(plan, chips={"small": chip}), [])


def test_seconds_are_announced(plan: Plan) -> None:
    slow = replace(CHIP, bandwidth_gb_s=1e-4)
    slow_plan = make_plan("somewhere", "fp16", plan.deployment, None, {slow.name: slow})
    assert "roofline times in ms (s: seconds) on 2 ranks" in to_text(slow_plan, [])
    assert "2 ranks, times in ms (s: seconds)\n" in to_text(slow_plan, [slow.name])
    assert "(s: seconds)" not in to_text(plan, [CHIP.name])


def test_a_model_too_short_for_every_pair_has_no_table(plan: Plan) -> None:
    short = replace(plan.deployment, model=replace(plan.deployment.model, max_position_embeddings=100))
    text = to_text(make_plan("somewhere", "fp16", short, None, {CHIP.name: CHIP}), [CHIP.name])
    assert "roofline times on 2 ranks: none\n" in text and "batch" not in text.split("roofline times")[1]
    assert "256, 256 is left out: the model has 100 positions\n" in text and "2 ranks, no times\n" in text


@pytest.mark.usefixtures("clean_environ")
def test_what_of_a_card_is_kept_free(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for reserved, said in (("3", "3 GiB at least are kept free"), ("40", "40 GiB at least"), ("0", "on whole cards")):
        monkeypatch.setenv("RESERVED_MEMORY_GB", reserved)
        assert said in to_text(plan, [])


def test_the_heading_names_the_model(plan: Plan, demo: Path) -> None:
    assert to_text(plan, []).startswith("plan of somewhere\n")
    assert to_text(replace(plan, folder=str(demo)), []).startswith("plan of embedded checkpoint\n")
    assert to_text(replace(plan, folder="/models/deepseek/"), []).startswith("plan of deepseek\n")


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
