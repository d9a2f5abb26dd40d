"""An int8 KV cache against the plain implementation, whose attention meets what int8 keeps of its keys and values.

A number whose quotient lies within float32's rounding of a half goes to one integer here and to the next there, and
later layers carry that on. So most positions of short prompts agree as floats do, none of them is far off, and the mean
deviation of a long prompt is small beside the change that quantising makes.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import LLM
from tests.kept_ranks import KeptRanks
from tests.parity.golden import FP32_TOLERANCE
from tests.parity.plain import plain_logits
from tests.parity.test_golden import CHECKPOINTS as GOLDEN
from tests.tiny import FAMILIES, write_checkpoint

CHECKPOINTS = ("deepseek", "qwen", "xverse")
EVERY = [*CHECKPOINTS, *(pytest.param(name, marks=pytest.mark.full) for name in GOLDEN if name not in CHECKPOINTS)]
SHORT = [torch.randint(3, 250, (4,), generator=torch.Generator().manual_seed(seed)).tolist() for seed in range(16)]
LONG = torch.randint(3, 250, (60,), generator=torch.Generator().manual_seed(1)).tolist()


def kept(x_TMD: Tensor) -> Tensor:
    """The floats that int8 with a scale for each vector stands for."""
    scale = x_TMD.abs().amax(dim=-1, keepdim=True) / 127
    return torch.round(x_TMD / scale) * scale


def check(folder: str) -> None:
    """Short prompts, and a long one in chunks; its ranks are those of the environment."""
    config, tensors = json.loads(Path(folder, "config.json").read_text()), load_file(Path(folder, "model.safetensors"))
    with LLM(folder, dtype="fp32", device="cpu", kv_dtype="int8", block_size=16, max_prefill_tokens=20) as llm:
        short, (long,) = llm.prompt_logits(SHORT), llm.prompt_logits([LONG])
    errors = torch.cat(
        [
            (ours - plain_logits(config, tensors, ids, kept=kept)).abs().amax(dim=1)
            for ours, ids in zip(short, SHORT, strict=True)
        ]
    )
    assert (errors <= FP32_TOLERANCE).float().mean() > 0.75 and errors.max() < 0.3
    exact, emulated = plain_logits(config, tensors, LONG), plain_logits(config, tensors, LONG, kept=kept)
    change = (exact - emulated).abs().mean()
    assert change > 0.004, "the measure sees what quantising does"
    assert (long - emulated).abs().mean() < 0.3 * change


def check_by_torch(folder: str) -> None:
    """The same without the native library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATB_CPU_ISA", "reference")
        check(folder)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("by", ["library", "torch"])
def test_one_rank(shared: Path, name: str, by: str) -> None:
    (check if by == "library" else check_by_torch)(str(shared / "golden" / name))


@pytest.mark.parametrize(
    ("name", "tp"),
    [
        one if one[1] in (2, 4) or one == ("xverse", 3) else pytest.param(*one, marks=pytest.mark.full)
        for one in product(CHECKPOINTS, (2, 3, 4, 5, 6, 8))
    ],
)
def test_ranks(shared: Path, kept_ranks: KeptRanks, name: str, tp: int) -> None:
    kept_ranks.run("tests.parity.test_int8_cache:check", tp, str(shared / "golden" / name))


@pytest.mark.parametrize("tp", [2, pytest.param(8, marks=pytest.mark.full)])
def test_ranks_by_torch(shared: Path, kept_ranks: KeptRanks, tp: int) -> None:
    kept_ranks.run("tests.parity.test_int8_cache:check_by_torch", tp, str(shared / "golden" / "deepseek"))


@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_heads_that_ranks_copy(family: str, tmp_path: Path, kept_ranks: KeptRanks) -> None:
    """Two KV heads on four ranks."""
    write_checkpoint(tmp_path, family=family, num_key_value_heads=2)
    check(str(tmp_path))
    kept_ranks.run("tests.parity.test_int8_cache:check", 4, str(tmp_path))
