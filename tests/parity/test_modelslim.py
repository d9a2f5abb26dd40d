"""Logits of ModelSlim's weights against the plain implementation, on the floats or the integers that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import LLM
from atb_models.errors import ConfigError
from tests.kept_ranks import KeptRanks
from tests.models.quantized.modelslim.writer import Form, Written, every, quantized, save, write
from tests.parity.golden import FP32_TOLERANCE
from tests.parity.integer_products import check_agreement, integer_tensors
from tests.parity.plain import plain_logits

# Short, for an activation that is rounded the other way moves the logits at all later positions of its prompt.
PROMPTS = torch.randint(3, 250, (10, 12), generator=torch.Generator().manual_seed(1)).tolist()
MODELS = ("deepseek", "qwen")
ON_RANKS = [pytest.param(tp, marks=pytest.mark.full) for tp in (2, 3, 4, 8)]


def usual_recipe(name: str) -> str | None:
    """Attention static, experts dynamic, the first layer floats."""
    if not name.endswith("_proj.weight") or name.startswith("model.layers.0."):
        return None
    return "W8A8" if "self_attn" in name else "W8A8_DYNAMIC"


WEIGHT_ONLY = {
    "w8a16": Form("w8a16", every("W8A16")),
    "w8a16_asymmetric": Form("w8a16", every("W8A16"), asymmetric=True),
    "w8a16_group": Form("w8a16", every("W8A16"), "1.0.0", group=32),
    "w4a16": Form("w4a16", every("W4A16")),
    "w4a16_group": Form("w4a16", every("W4A16"), "1.0.0", group=32),
    "w4a16_asymmetric": Form("w4a16", every("W4A16"), "1.0.0", group=64, asymmetric=True, scale_dtype=torch.bfloat16),
}
WITH_ACTIVATIONS = {
    "dynamic": Form("w8a8_dynamic", every("W8A8_DYNAMIC")),
    "static": Form("w8a8", every("W8A8")),
    "static_int64": Form("w8a8", every("W8A8"), "1.0.0", deq_scale="int64"),
    "mix": Form("w8a8_mix", every("W8A8_MIX")),
    "recipe": Form("w8a8_dynamic", usual_recipe, "1.0.0"),
}


def logits_of(folder: Path) -> Tensor:
    """Of all prompts one after the other: [T, V]."""
    with LLM(folder, dtype="fp32", device="cpu", block_size=16, max_prefill_tokens=20) as llm:
        return torch.cat(llm.prompt_logits(PROMPTS))


def exact_logits(folder: Path, tensors: dict[str, Any]) -> Tensor:
    """The same by the plain implementation."""
    config = json.loads((folder / "config.json").read_text())
    return torch.cat([plain_logits(config, tensors, prompt) for prompt in PROMPTS])


def check_weight_only(folder: str) -> None:
    """Of the ranks of the environment; exact.pt in the folder has what must come out."""
    error = (logits_of(Path(folder)) - torch.load(Path(folder, "exact.pt"))).abs().max().item()
    assert error <= FP32_TOLERANCE, f"logits are off by {error:.1e}"


def write_exact(folder: Path, written: Written, *, integers: bool = False) -> None:
    torch.save(exact_logits(folder, integer_tensors(written) if integers else written.floats), folder / "exact.pt")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", WEIGHT_ONLY)
def test_weights_alone(shared: Path, tmp_path: Path, form: str, model: str) -> None:
    write_exact(tmp_path, write(tmp_path, shared / "golden" / model, WEIGHT_ONLY[form]))
    check_weight_only(str(tmp_path))


@pytest.mark.parametrize("tp", ON_RANKS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", WEIGHT_ONLY)
def test_weights_alone_on_ranks(
    shared: Path, tmp_path: Path, kept_ranks: KeptRanks, form: str, model: str, tp: int
) -> None:
    write_exact(tmp_path, write(tmp_path, shared / "golden" / model, WEIGHT_ONLY[form]))
    kept_ranks.run("tests.parity.test_modelslim:check_weight_only", tp, str(tmp_path))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", WITH_ACTIVATIONS)
def test_int8_activations(shared: Path, tmp_path: Path, form: str, model: str) -> None:
    write_exact(tmp_path, write(tmp_path, shared / "golden" / model, WITH_ACTIVATIONS[form]), integers=True)
    check_agreement(logits_of(tmp_path), torch.load(tmp_path / "exact.pt"))


@pytest.mark.parametrize("kind", ["W8A16", "W8A8_DYNAMIC", "W8A8"])
def test_routers_and_a_head_of_integers(shared: Path, tmp_path: Path, kind: str) -> None:
    """They are held as floats, which static activations do not allow."""
    kinds = {"gate.weight": kind, "lm_head.weight": "W8A16"}
    form = Form("w8a16", lambda name: next((kinds[end] for end in kinds if name.endswith(end)), every("W8A16")(name)))
    written = write(tmp_path, shared / "golden" / "deepseek", form)
    if kind == "W8A8":
        with pytest.raises(ConfigError, match=r"^model\.layers\.1\.mlp\.gate\.weight .* takes static int8 activa"):
            logits_of(tmp_path)
        return
    write_exact(tmp_path, written)
    check_weight_only(str(tmp_path))


@pytest.mark.parametrize("prefix", ["input_layernorm", "input_layernorm.module"])
def test_norms_with_biases(shared: Path, tmp_path: Path, prefix: str) -> None:
    """As outlier suppression leaves them, by the newer and the older saver, with biases of q, k and v that undo it.

    The plain implementation has no such norm: it gets what its bias adds behind q, k and v.
    """
    golden, form = shared / "golden" / "deepseek", Form("w8a16", every("W8A16"))
    written = quantized(load_file(golden / "model.safetensors"), form)
    shift = torch.linspace(-0.5, 0.5, 128)
    for layer in (f"model.layers.{place}" for place in range(4)):
        weight = written.floats[f"{layer}.input_layernorm.weight"] * 1.5
        written.add("FLOAT", **{f"{layer}.{prefix}.weight": weight, f"{layer}.{prefix}.bias": shift.clone()})
        written.floats[f"{layer}.input_layernorm.weight"] = weight
        for stem in (f"{layer}.self_attn.{role}_proj" for role in "qkv"):
            bias = torch.linspace(0.3, -0.3, 128)
            written.add("FLOAT", **{f"{stem}.bias": bias})
            written.floats[f"{stem}.bias"] = bias + written.floats[f"{stem}.weight"] @ shift
    save(tmp_path, written, form, json.loads((golden / "config.json").read_text()))
    write_exact(tmp_path, written)
    check_weight_only(str(tmp_path))


def test_the_measure_tells_kinds_of_activations_apart(shared: Path, tmp_path: Path) -> None:
    """Float activations, or static for dynamic ones, are far off by the measure of `check_agreement`."""
    golden = shared / "golden" / "deepseek"
    dynamic, static = (write(tmp_path / form, golden, WITH_ACTIVATIONS[form]) for form in ("dynamic", "static"))
    exact = exact_logits(tmp_path / "dynamic", integer_tensors(dynamic))
    for other in (dynamic.floats, integer_tensors(static)):
        with pytest.raises(AssertionError, match="the median of the mean differences"):
            check_agreement(exact_logits(tmp_path / "dynamic", other), exact)
