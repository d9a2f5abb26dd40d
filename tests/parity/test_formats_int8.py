"""compressed-tensors with int8 activations, by token and static, against integer products in float64."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import LLM
from tests.kept_ranks import KeptRanks
from tests.models.formats.checkpoints import edit, is_linear, quantized_copy
from tests.models.formats.packing import compressed
from tests.models.formats.test_compressed_tensors import STATIC, TOKEN, declared, weights
from tests.parity.integer_products import check_agreement, dynamic, static
from tests.parity.plain import plain_logits

FULL = pytest.mark.full
# Short, for an activation between two integers moves the logits of its token and of all after it.
PROMPTS = torch.randint(3, 500, (20, 5), generator=torch.Generator().manual_seed(3)).tolist()
INPUT_SCALE, ZERO_POINT = 0.03125, -7  # of all inputs, which are within 4 mostly


def written(shared: Path, folder: Path, name: str, inputs: dict[str, Any]) -> Path:
    """A golden checkpoint in int8, with what the inputs of its linear maps need."""
    form = declared("int-quantized", {"weights": weights(8, None), "input_activations": inputs})
    quantized_copy(shared / "golden" / name, folder, form, partial(compressed, bits=8, packed=False))
    if not inputs["dynamic"]:
        edit(folder, partial(add_inputs, symmetric=inputs["symmetric"]))
    return folder


def add_inputs(tensors: dict[str, Tensor], *, symmetric: bool) -> None:
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        tensors[name.replace("weight_scale", "input_scale")] = torch.tensor([INPUT_SCALE], dtype=torch.bfloat16)
        if not symmetric:
            zero = torch.tensor([ZERO_POINT], dtype=torch.int8)
            tensors[name.replace("weight_scale", "input_zero_point")] = zero


def check(folder: str) -> None:
    """Logits of all prompts; the ranks are those of the environment."""
    path = Path(folder)
    config, stored = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    exact: dict[str, Any] = {name: tensor for name, tensor in stored.items() if tensor.is_floating_point()}
    for name in filter(is_linear, stored):
        numbers, scale = stored[name], stored[f"{name}_scale"].float().flatten()
        stem = name.removesuffix(".weight")
        if f"{stem}.input_scale" in stored:
            zero = float(stored.get(f"{stem}.input_zero_point", torch.zeros(1)))
            own = float(stored[f"{stem}.input_scale"])
            exact[name] = static(numbers, scale.double() * own, -zero * numbers.double().sum(1), own, zero)
        else:
            exact[name] = dynamic(numbers, scale)
    with LLM(path, dtype="fp32", device="cpu", block_size=16, max_prefill_tokens=33) as llm:
        ours = torch.cat(llm.prompt_logits(PROMPTS))
    check_agreement(ours, torch.cat([plain_logits(config, exact, prompt) for prompt in PROMPTS]))


@pytest.mark.parametrize(
    "inputs", [TOKEN, STATIC, STATIC | {"symmetric": False}], ids=["token", "static", "zero-point"]
)
@pytest.mark.parametrize("name", ["deepseek", "qwen"])
def test_one_rank(shared: Path, tmp_path: Path, name: str, inputs: dict[str, Any]) -> None:
    """Qwen has biases of floats beside the integers."""
    check(str(written(shared, tmp_path, name, inputs)))


@pytest.mark.parametrize("tp", [2, *(pytest.param(tp, marks=FULL) for tp in (3, 4, 8))])
@pytest.mark.parametrize("name", [pytest.param("deepseek", marks=FULL), "qwen"])
def test_ranks_with_static_scales(shared: Path, tmp_path: Path, kept_ranks: KeptRanks, name: str, tp: int) -> None:
    """The integers of activations are the same at every tp, and one rank alone takes the zero point out."""
    folder = written(shared, tmp_path, name, STATIC | {"symmetric": False})
    kept_ranks.run("tests.parity.test_formats_int8:check", tp, str(folder))


def test_the_measure_tells_a_wrong_zero_point(shared: Path, tmp_path: Path) -> None:
    folder = written(shared, tmp_path, "qwen", STATIC | {"symmetric": False})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "atb_models.models.quantized.packed.presented._fill_quant_bias", lambda target, *_: target.zero_()
        )
        with pytest.raises(AssertionError, match="the median of the mean differences"):
            check(str(folder))
