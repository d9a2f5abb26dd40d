"""Latent attention on the command line: plan, graph, profile and answer; and the figures that the documents give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models.graph import meta_model
from atb_models.launcher.main import main
from atb_models.limits import Limits
from atb_models.models.config_reader import load_model_config
from atb_models.plan.capacity import Deployment
from atb_models.plan.chips import load_chips
from atb_models.plan.memory import kv_bytes_per_token, one_of_each_layer
from atb_models.plan.plan import refusal
from tests.tiny_latent import write_latent
from tests.wide_latent import PUBLISHED

ROWS = {"v2_lite": "| DeepSeek-V2-Lite |", "v2": "| DeepSeek-V2 |", "v3": "| DeepSeek-V3"}

pytestmark = pytest.mark.usefixtures("clean_environ")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(list(words))
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Any]:
    """Of DeepSeek-V2-Lite on 8 ranks, as JSON."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["v2_lite"]))
    words = ["--model_path", str(tmp_path), "--device", "cpu", "--tp", "8", "--plan", "--format", "json"]
    yield json.loads(run(capsys, *words))


def test_a_plan(plan: Any) -> None:
    """Tokens take as much on each of 8 ranks as on one. The longer texts are, the more latents a step reads: those of
    each sequence, 31,104 bytes of all layers for each of the 64 * (3072 - 1536) tokens more."""
    token = 27 * (512 + 64) * 2
    assert plan["memory"]["rank"]["kv_per_token"] == token == 31104
    cells = [cell for cell in plan["chips"]["H200"]["times"] if cell["batch"] == 64]
    longer, shorter = (next(cell for cell in cells if cell["prompt"] == prompt) for prompt in (2048, 1024))
    more = longer["per_token_s"]["memory"] - shorter["per_token_s"]["memory"]
    bandwidth = plan["chips"]["H200"]["figures"]["bandwidth_gb_s"]["value"] * 1e9
    assert more * bandwidth == pytest.approx(64 * 1536 * token, rel=0.01)
    served = {chip: told["served"] for chip, told in plan["chips"].items()}
    assert all(served[chip] is not chip.startswith("Atlas") for chip in served) and not all(served.values())


def test_a_plan_names_what_a_chip_is_refused_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["v2_lite"]))
    deployment = Deployment(load_model_config(tmp_path), torch.float16, 1, Limits(1, 64, 128, 128))
    refused = {chip.name: refusal(deployment, chip) for chip in load_chips().values()}
    assert refused["Atlas 800I A2 32 GB"] == "latent attention" and refused["H200"] is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_documents_figures(tmp_path: Path, root: Path, name: str) -> None:
    """In floats and in int8 with two scales, beside what keys and values of all heads would take."""
    model = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(model))
    kinds, layers = one_of_each_layer(load_model_config(tmp_path)), model["num_hidden_layers"]
    figures = []
    for kv_dtype in (None, torch.int8):
        layer = meta_model(kinds, torch.float16, 1, kv_dtype=kv_dtype).layers[0]
        figures.append(f"{layers * kv_bytes_per_token([layer]) / 1024:.1f} KiB")
    expanded = layers * model["num_attention_heads"] * (128 + 64 + 128) * 2
    for document in ("models.md", "models.zh.md"):
        lines = (root / "docs" / document).read_text("utf-8").splitlines()
        (row,) = [line for line in lines if line.startswith(ROWS[name]) and "KiB" in line]
        assert row.split(" | ")[1:] == [*figures, f"{expanded / 1024:.0f} KiB |"]


def test_graph_and_profile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_latent(tmp_path / "model", "deepseek_v2", num_attention_heads=5)
    words = ["--model_path", str(tmp_path / "model"), "--device", "cpu"]
    graph = json.loads(run(capsys, *words, "--print_graph", "--format", "json"))["decode"]
    assert graph["counts"]["LatentAttention"] == 3
    monkeypatch.setenv("PROFILING_FILEPATH", str(tmp_path / "profile"))
    assert "Answer[0]" in run(capsys, *words, "--profile", "--input_ids", "5,6,7,8", "--max_output_length", "3")
    assert "LatentAttention" in next((tmp_path / "profile").rglob("profile.json")).read_text()
