"""Golden checkpoints with weights of integers: logits of the pretend device against those of the CPU in float32.

Weight-only: as near as the published code in the same data type is to itself in float32. With int8 activations an
activation that lies between two integers goes to either, and all logits move; so there our deviation is measured by
that of the CPU in the same data type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from atb_models import LLM
from tests.models.quantized.modelslim.writer import Form, every, write
from tests.npu.ranks import Ranks
from tests.parity.golden import Golden

CHECKPOINTS = ("deepseek", "qwen", "xverse")
StartRanks = Callable[[int], Ranks]


@pytest.fixture(scope="module")
def ranks() -> Iterator[StartRanks]:
    """So many ranks, the same ones for all tests."""
    with ExitStack() as started:
        yield cache(lambda size: started.enter_context(Ranks(size)))


@cache
def of_cpu(folder: Path, dtype: str, quantize: str | None, golden: Path) -> list[Tensor]:
    with LLM(folder, dtype=dtype, device="cpu", quantize=quantize, prefix_cache=False) as llm:
        return llm.prompt_logits(Golden(golden).prompts)


def deviation(ours: list[Tensor], exact: list[Tensor]) -> Tensor:
    """[T] over all prompts: the mean over the vocabulary."""
    return torch.cat([(a - b).abs().mean(dim=1) for a, b in zip(ours, exact, strict=True)])


def check_floats(ranks: Ranks, folder: Path, dtype: str, quantize: str | None, golden: Path) -> None:
    ours = ranks.run("logits", str(folder), dtype, quantize, str(golden))
    Golden(golden).check_deviation(deviation(ours, of_cpu(folder, "fp32", quantize, golden)), dtype)


def check_int8(ranks: Ranks, folder: Path, dtype: str, quantize: str | None, golden: Path) -> None:
    exact = of_cpu(folder, "fp32", quantize, golden)
    mine = deviation(ranks.run("logits", str(folder), dtype, quantize, str(golden)), exact)
    theirs = deviation(of_cpu(folder, dtype, quantize, golden), exact)
    assert mine.median() <= 1.15 * theirs.median(), f"median {mine.median():.5f} against {theirs.median():.5f}"
    assert (mine > theirs.max()).float().mean() <= 0.02, f"{mine.max():.4f} against {theirs.max():.4f}"


def crossed(default: Callable[[str, int, str], bool], sizes: tuple[int, ...]) -> list[Any]:
    """All checkpoints, numbers of ranks and data types; those that are not of the default are in the wide cross."""
    every_one = [(name, tp, dtype) for name in CHECKPOINTS for tp in sizes for dtype in ("fp16", "bf16")]
    return [one if default(*one) else pytest.param(*one, marks=pytest.mark.full) for one in every_one]


@pytest.mark.parametrize(
    ("name", "tp", "dtype"), crossed(lambda name, tp, dtype: dtype == "fp16" and tp in (1, 8), (1, 2, 3, 4, 8))
)
def test_8_bits(shared: Path, ranks: StartRanks, name: str, tp: int, dtype: str) -> None:
    golden = shared / "golden" / name
    check_floats(ranks(tp), golden, dtype, "w8a16", golden)


@pytest.mark.parametrize(
    ("name", "tp", "dtype"),
    crossed(lambda name, tp, dtype: dtype == "fp16" and tp in (1, 8 if name == "qwen" else 1), (1, 2, 4, 8)),
)
def test_4_bits(
    shared: Path, ranks: StartRanks, caplog: pytest.LogCaptureFixture, name: str, tp: int, dtype: str
) -> None:
    """Eight ranks have 16 inputs of the attention's output, part of a group, so whole rows have one scale there."""
    golden = shared / "golden" / name
    with caplog.at_level("INFO", "atb_models"):
        check_floats(ranks(tp), golden, dtype, "w4a16", golden)
    assert not [record for record in caplog.records if "held as floats" in record.getMessage()]


@pytest.mark.parametrize(
    ("name", "tp", "dtype"),
    crossed(lambda name, tp, dtype: dtype == "fp16" or (name, tp) == ("deepseek", 1), (1, 8)),
)
def test_int8_activations(shared: Path, ranks: StartRanks, name: str, tp: int, dtype: str) -> None:
    golden = shared / "golden" / name
    check_int8(ranks(tp), golden, dtype, "w8a8_dynamic", golden)


OF_CHECKPOINTS = {
    "w8a16": Form("w8a16", every("W8A16"), asymmetric=True),
    "w4a16": Form("w4a16", every("W4A16"), group=32, asymmetric=True),
    "w8a8_dynamic": Form("w8a8_dynamic", every("W8A8_DYNAMIC")),
    "w8a8": Form("w8a8", every("W8A8"), deq_scale="int64", input_dtype=torch.float16),
}


@pytest.mark.parametrize(
    ("form", "tp", "dtype"),
    [
        *((form, 1, dtype) for form in OF_CHECKPOINTS for dtype in ("fp16", "bf16")),
        ("w8a8", 4, "fp16"),
        *(pytest.param(form, 4, "bf16", marks=pytest.mark.full) for form in OF_CHECKPOINTS),
    ],
)
def test_checkpoints(shared: Path, tmp_path: Path, ranks: StartRanks, form: str, tp: int, dtype: str) -> None:
    """Offsets that are no zeros, groups of a row's part, static scales in stacked experts too."""
    golden = shared / "golden" / "qwen"
    write(tmp_path, golden, OF_CHECKPOINTS[form])
    (check_int8 if form.startswith("w8a8") else check_floats)(ranks(tp), tmp_path, dtype, None, golden)


def test_what_no_operator_takes_is_held_as_floats(
    shared: Path, tmp_path: Path, ranks: StartRanks, caplog: pytest.LogCaptureFixture
) -> None:
    """Offsets of weights that int8 activations meet: the logits are those of the floats that the weights stand for."""
    golden, floats = shared / "golden" / "qwen", tmp_path / "floats"
    stored = write(tmp_path / "stored", golden, Form("w8a8_dynamic", every("W8A8_DYNAMIC"), asymmetric=True))
    floats.mkdir()
    (floats / "config.json").write_bytes((golden / "config.json").read_bytes())
    save_file({name: tensor.contiguous() for name, tensor in stored.floats.items()}, floats / "model.safetensors")
    with caplog.at_level("INFO"):
        ours = ranks(1).run("logits", str(tmp_path / "stored"), "fp16", None, str(golden))
    said = [record.getMessage() for record in caplog.records if "held as floats" in record.getMessage()]
    assert len(said) == 1 and "npu has no product for int8 activations with offsets of weights" in said[0]
    Golden(golden).check_deviation(deviation(ours, of_cpu(floats, "fp32", None, golden)), "fp16")
