"""Int8 activations on the golden checkpoints against integer products in float64."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import LLM
from atb_models.layers.storage import Storage
from atb_models.models import config_reader
from tests.kept_ranks import KeptRanks
from tests.models.storages.schemes import HandMade
from tests.parity.integer_products import check_agreement, dynamic, static
from tests.parity.plain import plain_logits
from tests.parity.test_golden import CHECKPOINTS as GOLDEN
from tests.quantized import integers_and_scales, is_quantized

CHECKPOINTS = ("deepseek", "qwen", "xverse")
EVERY = [*CHECKPOINTS, *(pytest.param(name, marks=pytest.mark.full) for name in GOLDEN if name not in CHECKPOINTS)]
# Short, for an activation between two integers moves the logits of its token and of all after it.
PROMPTS = torch.randint(3, 500, (20, 5), generator=torch.Generator().manual_seed(2)).tolist()
INPUT_SCALE, INPUT_OFFSET = 0.03, -7.0  # of all linear maps: what they get is within 3.6 and -4.0 mostly


def check(folder: str, how: str) -> None:
    """Logits of all prompts; folder: a golden checkpoint; its ranks are those of the environment."""
    path = Path(folder)
    config, tensors = json.loads((path / "config.json").read_text()), load_file(path / "model.safetensors")
    exact: dict[str, Any] = dict(tensors)
    held = {name: tensor.float() for name, tensor in tensors.items()}
    for name in filter(is_quantized, tensors):
        integers, scales = map(torch.from_numpy, integers_and_scales(tensors[name]))
        exact[name] = dynamic(integers, scales)
        if how == "static":
            bias_name = name.replace(".weight", ".bias")
            exact.pop(bias_name, None)
            exact[name] = make_static(held, name, integers, scales, held.pop(bias_name, torch.zeros(())))
    with pytest.MonkeyPatch.context() as patch:
        if how == "static":
            quantized = dict.fromkeys(filter(is_quantized, tensors), Storage(8, activations="static"))
            scheme = HandMade(quantized, tensors=held)
            patch.setattr(config_reader, "read_scheme", lambda *_: scheme)
        quantize = None if how == "static" else "w8a8_dynamic"
        with LLM(path, dtype="fp32", device="cpu", block_size=16, max_prefill_tokens=33, quantize=quantize) as llm:
            ours = torch.cat(llm.prompt_logits(PROMPTS))
    check_agreement(ours, torch.cat([plain_logits(config, exact, prompt) for prompt in PROMPTS]))


def make_static(held: dict[str, Tensor], name: str, integers: Tensor, scales: Tensor, bias: Tensor) -> Any:
    """Put the tensors of a static linear map beside its weight -> the same in float64."""
    stem, scale = name.removesuffix(".weight"), scales * INPUT_SCALE
    quant_bias = (bias / scale).round() - INPUT_OFFSET * integers.sum(1)
    held |= {name: integers, f"{name}_scale": scale, f"{stem}.quant_bias": quant_bias.int()}
    held |= {f"{stem}.input_scale": torch.tensor([INPUT_SCALE]), f"{stem}.input_offset": torch.tensor([INPUT_OFFSET])}
    return static(integers, scale, quant_bias, torch.tensor(INPUT_SCALE).double(), INPUT_OFFSET)


@pytest.mark.parametrize("how", ["dynamic", "static"])
@pytest.mark.parametrize("name", EVERY)
def test_one_rank(shared: Path, name: str, how: str) -> None:
    check(str(shared / "golden" / name), how)


@pytest.mark.parametrize(
    ("name", "tp"),
    [
        one if one in (("qwen", 2), ("deepseek", 3)) else pytest.param(*one, marks=pytest.mark.full)
        for one in product(CHECKPOINTS, (2, 3, 4, 5, 8))
    ],
)
def test_ranks_with_static_scales(shared: Path, kept_ranks: KeptRanks, name: str, tp: int) -> None:
    """The integers of activations are the same at every tp, and one rank alone adds the biases of integers."""
    kept_ranks.run("tests.parity.test_int8_activations:check", tp, str(shared / "golden" / name), "static")


def test_the_measure_tells_float_activations_from_integers(shared: Path) -> None:
    folder = shared / "golden" / "deepseek"
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    exact = {name: dynamic(*map(torch.from_numpy, integers_and_scales(tensor))) if is_quantized(name) else tensor
             for name, tensor in tensors.items()}  # fmt: skip
    with LLM(folder, dtype="fp32", device="cpu", quantize="w8a16") as llm:
        floats = torch.cat(llm.prompt_logits(PROMPTS))
    with pytest.raises(AssertionError, match="the median of the mean differences"):
        check_agreement(floats, torch.cat([plain_logits(config, exact, prompt) for prompt in PROMPTS]))
