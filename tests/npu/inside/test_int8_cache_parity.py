"""Golden checkpoints with an int8 KV cache on the pretend device.

A prompt that is not cut meets its own floats, so its logits are those of the published code. What is generated meets
integers: it is compared with the plain implementation in float64, whose queries meet the same. There rounding takes
some numbers to the next integer, so our deviation is measured by that of the CPU in the same data type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import LLM
from tests.npu.ranks import Ranks
from tests.parity.golden import Golden
from tests.parity.plain import plain_logits

CHECKPOINTS = ("deepseek", "deepseek_d128", "qwen", "xverse")
SCORED = 128  # prompt tokens at most whose logits come from one step
TOKENS = 24
StartRanks = Callable[[int], Ranks]


@pytest.fixture(scope="module")
def ranks() -> Iterator[StartRanks]:
    """So many ranks, the same ones for all tests."""
    with ExitStack() as started:
        yield cache(lambda size: started.enter_context(Ranks(size)))


def crossed(sizes: tuple[int, ...], default: Callable[[str, int, str], bool]) -> list[Any]:
    """All checkpoints, numbers of ranks and data types; those that are not of the default are in the wide cross."""
    every = [(name, tp, dtype) for name in CHECKPOINTS for tp in sizes for dtype in ("fp16", "bf16")]
    return [one if default(*one) else pytest.param(*one, marks=pytest.mark.full) for one in every]


@pytest.mark.parametrize(
    ("name", "tp", "dtype"), crossed((1, 2, 4, 8), lambda name, tp, dtype: tp == 1 or (tp == 8 and dtype == "fp16"))
)
def test_prompts_that_are_not_cut(shared: Path, ranks: StartRanks, name: str, tp: int, dtype: str) -> None:
    golden = Golden(shared / "golden" / name)
    ours = ranks(tp).run("int8_prompts", str(golden.path), dtype, SCORED, None, 128)
    exact = [golden.tensors[f"logits_fp32_{k}"][: len(own)] for k, own in enumerate(ours)]
    golden.check_deviation(deviation(ours, exact), dtype)


def kept(x_TMD: Tensor) -> Tensor:
    """The floats that int8 with a scale for each vector stands for."""
    scale = x_TMD.abs().amax(dim=-1, keepdim=True) / 127
    return torch.round(x_TMD / scale) * scale


def deviation(ours: list[Tensor], exact: list[Tensor]) -> Tensor:
    """[T] over all texts: the mean over the vocabulary."""
    return torch.cat([(a - b).abs().mean(dim=1) for a, b in zip(ours, exact, strict=True)])


class Plain:
    """The plain implementation over a cache that keeps integers, of a golden checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "model.safetensors")

    def logits(self, ids: list[int], floats_from: Callable[[int], int], places: range | None = None) -> Tensor:
        return plain_logits(self.config, self.tensors, ids, places, kept=kept, floats_from=floats_from)


def integers_alone(t: int) -> int:
    return t + 1


@cache
def measure(folder: Path, dtype: str) -> tuple[Tensor, Tensor]:
    """The CPU's deviations, where all meets integers: from the plain implementation, and from the published floats."""
    golden = Golden(folder)
    with LLM(folder, dtype=dtype, device="cpu", kv_dtype="int8", prefix_cache=False) as llm:
        theirs = llm.prompt_logits(golden.prompts)
    exact = [Plain(folder).logits(ids, integers_alone) for ids in golden.prompts]
    return deviation(theirs, exact), deviation(theirs, [golden.tensors[f"logits_fp32_{k}"] for k in range(5)])


def check(ours: list[Tensor], exact: list[Tensor], theirs: Tensor) -> None:
    """Measured by the deviations of another."""
    mine = deviation(ours, exact)
    assert mine.median() <= 1.25 * theirs.median(), f"median {mine.median():.5f} against {theirs.median():.5f}"
    assert (mine > theirs.max()).float().mean() <= 0.02, f"{mine.max():.4f} against {theirs.max():.4f}"


@pytest.mark.parametrize(
    ("name", "tp", "dtype"), crossed((1, 8), lambda name, tp, dtype: dtype == "fp16" or (name, tp) == ("qwen", 1))
)
def test_answers(shared: Path, ranks: StartRanks, name: str, tp: int, dtype: str) -> None:
    """Each generated token meets integers alone, its prompt's and its own too."""
    folder = shared / "golden" / name
    texts, ours, _ = ranks(tp).run("decode", str(folder), dtype, tp, 6, TOKENS, "int8")
    exact = []
    for ids in texts:
        prompt = len(ids) - TOKENS
        places = range(prompt - 1, len(ids) - 1)
        exact.append(Plain(folder).logits(ids, lambda t, own=prompt: 0 if t < own else t + 1, places))
    check(ours, exact, measure(folder, dtype)[0])


@pytest.mark.parametrize(("chunk", "block_size"), [(16, 128), (100, 256)])
def test_chunks(shared: Path, ranks: StartRanks, chunk: int, block_size: int) -> None:
    """Each meets its own floats, and what earlier ones left as integers."""
    folder = shared / "golden" / "deepseek_d128"
    ours = ranks(1).run("int8_prompts", str(folder), "fp16", 300, chunk, block_size)
    exact = [Plain(folder).logits(ids, lambda t: t // chunk * chunk) for ids in Golden(folder).prompts]
    check(ours, exact, measure(folder, "fp16")[0])


def test_prefix_hits(shared: Path, ranks: StartRanks) -> None:
    """Of 129 and 300 tokens: whole blocks were there, as the integers of one step."""
    folder = shared / "golden" / "deepseek_d128"
    ours = ranks(1).run("int8_hits", str(folder), "fp16")
    exact = []
    for ids in Golden(folder).prompts:
        hit = (len(ids) - 1) // 128 * 128
        exact.append(Plain(folder).logits(ids, lambda t, hit=hit: 0 if t < hit else hit, range(len(ids) - 1, len(ids))))
    check([one[None] for one in ours], exact, measure(folder, "fp16")[0])


def test_preempted_answers(shared: Path, ranks: StartRanks) -> None:
    """They are computed anew as prompts; no farther from the floats than where all meets integers."""
    folder = shared / "golden" / "deepseek_d128"
    texts, ours, preemptions = ranks(1).run("decode", str(folder), "fp16", 1, 4, 132, "int8")
    assert preemptions > 0
    with LLM(folder, dtype="fp32", device="cpu") as llm:
        exact = [lines[-133:-1] for lines in llm.prompt_logits(texts)]
    check(ours, exact, measure(folder, "fp16")[1])
