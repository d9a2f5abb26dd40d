"""The bounds of an open LLM against the plan's own figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atb_models import LLM
from atb_models.bounds import Batch, check_chip, roofline
from atb_models.errors import ConfigError
from atb_models.models.config_reader import load_model_config
from atb_models.plan import times
from atb_models.plan.chips import load_chips


@pytest.fixture(scope="module")
def llm(demo: Path) -> object:
    with LLM(demo, device="cpu", max_prefill_tokens=300) as opened:
        yield opened


def test_they_are_the_plans(llm: LLM, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "PAIRS", ((700, 64), (64, 8)))
    monkeypatch.setattr(times, "BATCHES", (1, 3))
    chip = load_chips()["H200"]
    cells = times.roofline_cells(load_model_config(demo, log=False), torch.float16, 1, 300, [chip])["H200"]
    found = roofline(llm, [Batch(cell.prompt, cell.answer, cell.batch) for cell in cells], chip="h200")
    assert found.chip == "H200" and len(found.times) == 4
    for bound, cell in zip(found.times, cells, strict=True):
        assert bound.prefill_s == pytest.approx(cell.first_token.total, rel=1e-9)
        assert bound.decode_s == pytest.approx(cell.per_token.total, rel=1e-9)


def test_those_of_int8_weights_are_the_plans_too(llm: LLM, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "PAIRS", ((700, 64),))
    monkeypatch.setattr(times, "BATCHES", (1,))
    chip, config = load_chips()["H200"], load_model_config(demo, log=False)
    (cell,) = times.roofline_cells(config, torch.float16, 1, 300, [chip], "w8a16")["H200"]
    with LLM(demo, device="cpu", max_prefill_tokens=300, quantize="w8a16") as int8:
        (bound,) = roofline(int8, [Batch(700, 64, 1)], chip="H200").times
    assert bound.decode_s == pytest.approx(cell.per_token.total, rel=1e-9)
    assert bound.decode_s < 0.8 * roofline(llm, [Batch(700, 64, 1)], chip="H200").times[0].decode_s


def test_longer_and_larger_take_longer(llm: LLM) -> None:
    first, longer, larger = roofline(llm, [Batch(8, 8, 1), Batch(900, 8, 1), Batch(900, 8, 4)], chip="H200").times
    assert first.prefill_s < longer.prefill_s < larger.prefill_s and first.decode_s < longer.decode_s < larger.decode_s


def test_this_cpu_is_measured(llm: LLM) -> None:
    found = roofline(llm, [Batch(8, 8, 1)])
    assert found.chip == "this CPU" and found.times[0].decode_s > 0 and not found.reason


def test_too_little_memory_to_measure(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atb_models.bounds.measure_cpu", lambda *_: (_ for _ in ()).throw(MemoryError))
    found = roofline(llm, [Batch(8, 8, 1)])
    assert found.chip is None and found.times == [] and "too little memory" in found.reason


def test_a_chip_that_is_none(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="there is no chip 'TPU'"):
        roofline(llm, [], chip="TPU")
    with pytest.raises(ConfigError, match="compared with one chip"):
        roofline(llm, [], chip="all")


def test_a_chip_that_is_none_is_known_without_an_llm() -> None:
    for chip in (None, "h200", "this cpu"):
        check_chip(chip, None)
    for chip, file, message in (("TPU", None, "no chip 'TPU'"), ("all", None, "one chip"), (None, "absent", "absent")):
        with pytest.raises(ConfigError, match=message):
            check_chip(chip, file)
