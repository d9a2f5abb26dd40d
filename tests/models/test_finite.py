"""Weights that are infinite or no numbers: found while they are read, counted, and told once for all ranks."""

from __future__ import annotations

import logging
import math
import mmap
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from atb_models import LLM, SamplingParams
from atb_models.models.weights import finite, safetensors_file
from atb_models.models.weights.checkpoint import open_checkpoint
from atb_models.models.weights.finite import NotFinite, count_not_finite, has_large, summary, words_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
SPECIAL = (math.inf, -math.inf, math.nan, -math.nan)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_look_tells_the_large_from_the_small(dtype: torch.dtype) -> None:
    """At every place; the sign does not matter."""
    small = torch.tensor([0.0, -0.0, 1.0, -1.9921875, 1.9921875, 1e-7, -1e-7] * 5).to(dtype)
    assert not has_large(words_of(small))
    for value in (2.0, -2.0, 300.0, *SPECIAL):
        for place in range(len(small)):
            values = small.clone()
            values[place] = value
            assert has_large(words_of(values)), (value, place)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("band", [1, 7, 1 << 17])
def test_numbers_that_are_not_finite_are_counted(
    dtype: torch.dtype, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "_BAND", band)
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest, -largest, 0.0, 2.0, *SPECIAL, 5e-8, -3.0] * 6).to(dtype)
    expected = int((~torch.isfinite(values)).sum())
    assert expected == 24
    whole = values.view(6, 10)
    for view in (values, whole, whole.t(), whole[:, 3:7], whole.view(3, 2, 10)[:, 1], values[4], values[:0], whole[:0]):
        assert count_not_finite(view) == int((~torch.isfinite(view)).sum()), view.shape


def damaged(folder: Path, places: dict[str, list[tuple[int, ...]]], value: float, layout: str = "single") -> None:
    """A tiny checkpoint with `value` at these places."""
    tensors = tiny.write_checkpoint(folder, initializer_range=0.02)
    for name, spots in places.items():
        for spot in spots:
            tensors[name][spot] = value
    for file in folder.glob("*.safetensors"):
        file.unlink()
    tiny.write_weights(folder, tensors, layout)


@pytest.mark.parametrize("layout", ["single", "bin"])
@pytest.mark.parametrize("value", SPECIAL)
def test_a_reader_tells_of_it(layout: str, value: float, tmp_path: Path) -> None:
    damaged(tmp_path, {"model.norm.weight": [(63,)], "lm_head.weight": [(255, 63)]}, value, layout)
    with open_checkpoint(tmp_path) as checkpoint:
        for name in sorted(checkpoint.names()):
            for dtype in DTYPES:
                target = torch.zeros(checkpoint.shape(name), dtype=dtype)
                numbers = checkpoint.read_into(name, None, 0, 0, target)
                assert numbers == (name in ("model.norm.weight", "lm_head.weight")), name
                assert count_not_finite(target) == numbers


PLACES = {
    "model.embed_tokens.weight": [(0, 0), (255, 63), (17, 3)],
    "model.layers.0.self_attn.o_proj.weight": [(5, 1), (5, 62)],  # cut in columns, one on each of two ranks
    "model.layers.0.self_attn.q_proj.weight": [(1, 5), (62, 5)],  # cut in rows
    "model.layers.1.mlp.experts.3.down_proj.weight": [(9, 31)],
    "model.layers.1.mlp.gate.weight": [(7, 7)],  # every rank has it all
}
SAID = (
    "9 numbers of 5 tensors are infinite or no numbers: model.embed_tokens.weight (3),"
    " model.layers.0.self_attn.q_proj.weight (2), model.layers.0.self_attn.o_proj.weight (2) and 2 more"
)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_one_warning_names_tensors_and_counts(
    tp: int, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if tp == 2 and dtype != "bf16":
        return
    damaged(tmp_path, PLACES, math.nan)
    with LLM(tmp_path, device="cpu", dtype=dtype, kv_blocks=2, max_seq_len=64, tp=tp):
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"{tmp_path / 'model.safetensors'}: in {dtype} {SAID}; answers may mean nothing"]


def test_what_fp16_cannot_hold_is_told_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged(tmp_path, {"model.norm.weight": [(0,), (1,)], "lm_head.weight": [(0, 0)]}, 1e6)
    for dtype, count in (("bf16", 0), ("fp16", 3)):
        caplog.clear()
        with LLM(tmp_path, device="cpu", dtype=dtype, kv_blocks=2, max_seq_len=64):
            found = re.findall(r"in fp16 (\d) numbers of 2 tensors", caplog.text)
        assert found == [str(count)] * bool(count), dtype


def test_a_sound_checkpoint_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor one with large, finite weights."""
    damaged(tmp_path, {"lm_head.weight": [(0, 0)], "model.norm.weight": [(3,)]}, -60000.0)
    with LLM(tmp_path, device="cpu", dtype="fp16", kv_blocks=2, max_seq_len=64) as llm:
        llm.generate([[1, 2]], SamplingParams(max_tokens=1))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_command_line_says_it(tmp_path: Path) -> None:
    damaged(tmp_path, PLACES, math.inf)
    words = ["run", "--model_path", str(tmp_path), "--device", "cpu", "--input_ids", "1,2", "--max_output_length", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "atb_models", *words], env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert ended.stderr.count(SAID) == 1


def test_a_part_that_several_ranks_hold_counts_once() -> None:
    found = [NotFinite("a", 0, 2), NotFinite("a", 8, 1), NotFinite("b", 0, 5), NotFinite("a", 0, 2)]
    assert summary(found) == "8 numbers of 2 tensors are infinite or no numbers: a (3), b (5)"
    assert summary(found, most=1).endswith(": a (3) and 1 more")


@pytest.mark.full  # a share of time, which a busy machine blurs
def test_the_look_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processor time of reading from the page cache into new memory; 4 to 9 % were seen."""
    names = [f"t{i}" for i in range(60)]
    shape, count = (2048, 1408), 2048 * 1408
    tiny.write_weights(tmp_path, {name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name in names})

    def seconds() -> float:
        with open_checkpoint(tmp_path) as checkpoint:
            began = time.process_time()
            for name in names:
                memory = mmap.mmap(-1, 2 * count)
                checkpoint.read_into(name, None, 0, 0, torch.frombuffer(memory, dtype=torch.bfloat16).view(shape))
            return time.process_time() - began

    with_look, without = [], []
    for _ in range(15):
        with_look.append(seconds())
        with monkeypatch.context() as patch:
            patch.setattr(safetensors_file, "has_large", lambda words: False)
            without.append(seconds())
    assert sorted(with_look)[7] < 1.15 * sorted(without)[7], (with_look, without)
