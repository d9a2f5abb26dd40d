"""Checkpoints of quantised formats: the engine's logits are those of the floats that their weights stand for.

In fp32, against the plain implementation, whatever the format stores and whichever way ranks cut it. The fixtures are
packed by the rules of the formats; the floats beside them are what the packer rounded to.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from atb_models import LLM, SamplingParams
from tests.kept_ranks import KeptRanks
from tests.models.formats.checkpoints import edit, is_linear, quantized_copy
from tests.models.formats.packing import Packed, awq, compressed, float8, gptq
from tests.models.formats.test_compressed_tensors import declared, weights
from tests.models.formats.test_gptq import shuffled
from tests.parity.plain import plain_logits

FULL = pytest.mark.full
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def scattered(weight: Tensor) -> Packed:
    return gptq(weight, 4, 32, order=shuffled(weight, 32))


# What a checkpoint declares, and what packs a weight so.
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Packed]]] = {
    "gptq": (GPTQ, partial(gptq, group=32)),
    "gptq-8-bits-rows": (GPTQ | {"bits": 8, "group_size": -1}, partial(gptq, bits=8, group=-1)),
    "gptq-asymmetric": (GPTQ | {"sym": False, "group_size": 64}, partial(gptq, group=64, symmetric=False)),
    "gptq-scattered": (GPTQ | {"desc_act": True}, scattered),
    "awq": (AWQ, partial(awq, group=32)),
    "compressed-w4a16": (
        declared("pack-quantized", {"weights": weights(4, 64, symmetric=False)}),
        partial(compressed, bits=4, group=64, packed=True, symmetric=False),
    ),
    "compressed-w8a16": (
        declared("pack-quantized", {"weights": weights(8, None)}),
        partial(compressed, bits=8, packed=True),
    ),
    "float8-blocks": (
        {"quant_method": "fp8", "weight_block_size": [48, 80]},
        partial(float8, block=(48, 80)),
    ),
}


def written(shared: Path, folder: Path, name: str, format: str) -> tuple[str, str]:
    """The folders of a quantised golden checkpoint, and of the floats that it stands for."""
    stored, floats = folder / "stored", folder / "floats"
    for path in stored, floats:
        path.mkdir()
    declaration, pack = FORMATS[format]
    expected = quantized_copy(shared / "golden" / name, stored, declaration, pack)
    if declaration["quant_method"] == "gptq":
        edit(stored, add_placeholders)
    save_file({key: tensor.contiguous() for key, tensor in expected.items()}, floats / "model.safetensors")
    return str(stored), str(floats)


def add_placeholders(tensors: dict[str, Tensor]) -> None:
    """A bias of zeros for each linear map that has none, as packers add them."""
    for name in [name for name in tensors if name.endswith(".scales")]:
        bias = torch.zeros(tensors[name].shape[1], dtype=torch.float16)
        tensors.setdefault(name.replace(".scales", ".bias"), bias)


def check(stored: str, floats: str) -> None:
    """Logits of a prompt in chunks, and the greedy continuation; the ranks are those of the environment."""
    token_ids = torch.randint(3, 500, (37,), generator=torch.Generator().manual_seed(1)).tolist()
    with LLM(stored, dtype="fp32", device="cpu", block_size=16, max_prefill_tokens=20) as llm:
        ours = llm.prompt_logits(token_ids)
        (output,) = llm.generate([token_ids], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
    config = json.loads(Path(stored, "config.json").read_text())
    exact = plain_logits(config, load_file(Path(floats, "model.safetensors")), token_ids + output.token_ids)
    assert (ours - exact[: len(token_ids)]).abs().max() <= 2e-4
    assert output.token_ids == exact[len(token_ids) - 1 : -1].argmax(dim=1).tolist()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", [pytest.param("deepseek", marks=FULL), "qwen"])
def test_one_rank(shared: Path, tmp_path: Path, name: str, format: str) -> None:
    check(*written(shared, tmp_path, name, format))


@pytest.mark.parametrize(
    ("format", "name", "tp"),
    [
        ("gptq", "deepseek", 4),
        ("awq", "qwen", 2),
        *(pytest.param(format, name, tp, marks=FULL)
          for format in FORMATS for name in ("deepseek", "qwen") for tp in (2, 3, 4, 8)),
    ],
)  # fmt: skip
def test_ranks(shared: Path, tmp_path: Path, kept_ranks: KeptRanks, format: str, name: str, tp: int) -> None:
    """A rank of four has 16 inputs of an expert: half of a group."""
    kept_ranks.run("tests.parity.test_formats:check", tp, *written(shared, tmp_path, name, format))


def test_the_measure_tells_stored_weights_from_the_original(shared: Path, tmp_path: Path) -> None:
    stored, floats = written(shared, tmp_path, "deepseek", "gptq")
    original = shared / "golden" / "deepseek"
    changed = [name for name, tensor in load_file(Path(floats, "model.safetensors")).items()
               if not torch.equal(tensor.float(), load_file(original / "model.safetensors")[name].float())]  # fmt: skip
    assert sorted(changed) == sorted(filter(is_linear, load_file(original / "model.safetensors")))
    with pytest.raises(AssertionError):
        check(stored, str(original))
