"""The table of chips, a user's own, and the chip that is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atb_models.errors import ConfigError
from atb_models.plan.chips import FIGURES, PEAKS, find_chip, load_chips

NAMES = ["Atlas 800I A2 32 GB", "Atlas 800I A2 64 GB", "Atlas 300I DUO", "H200", "RTX 3090"]


def entry(**changes: Any) -> dict[str, Any]:
    """A chip as a user's file has it."""
    figures = dict(memory_gb=8, bandwidth_gb_s=100, fp16_tflops=10, bf16_tflops=None, fp32_tflops=2, link_gb_s=5)
    values = {name: {"value": value, "source": "a test"} for name, value in (figures | {"latency_us": 0}).items()}
    return {"name": "Mine", "device": "one chip", **values, **changes}


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Any], Any]:
    def write_and_load(content: Any) -> Any:
        path = tmp_path / "mine.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_chips(str(path))

    return write_and_load


def test_the_table_has_a_source_or_an_assumption_for_every_figure() -> None:
    chips = load_chips()
    assert list(chips) == NAMES
    for chip in chips.values():
        assert set(chip.sources) == set(FIGURES) and all(len(text) > 10 for text in chip.sources.values()), chip.name
        unknown = [name for name in FIGURES if getattr(chip, name) is None]
        assert all(chip.sources[name].startswith("none: ") for name in unknown)
        assert not chip.shared


def test_the_table_is_packaged(root: Path) -> None:
    assert '"atb_models.plan" = ["chips.json"]' in (root / "pyproject.toml").read_text()


def test_a_dtype_without_a_figure_is_bounded_by_the_fastest() -> None:
    duo = load_chips()["Atlas 300I DUO"]
    assert duo.bf16_tflops is None and duo.peak(torch.bfloat16) == duo.peak(torch.float16) == 70e12


def test_chips_are_found_whatever_the_capitals() -> None:
    assert find_chip("h200", load_chips()).name == "H200"
    with pytest.raises(ConfigError, match="no chip 'TPU'.*Atlas 300I DUO, H200, RTX 3090, this CPU"):
        find_chip("TPU", load_chips())


def test_a_file_adds_chips_and_replaces_those_of_the_same_name(load: Callable[[Any], Any]) -> None:
    chips = load([entry(), entry(name="h200", memory_gb={"value": 1, "source": "a test"})])
    assert list(chips) == [*(name for name in NAMES if name != "H200"), "Mine", "h200"]
    assert chips["h200"].memory_gb == 1 and chips["Mine"].latency_us == 0 and not chips["Mine"].shared
    assert load([entry(shared=True)])["Mine"].shared


FORM = r'\{"value": number, "source": text\}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not valid JSON"),
        ({"name": "Mine"}, "must hold a list of chips"),
        ([], "must hold a list of chips"),
        (["H200"], "chip 0 must be an object.*not 'H200'"),
        ([entry(name=" ")], "chip 0: name must be a text, not ' '"),
        ([entry(device=3)], "chip 0: device must be a text, not 3"),
        ([entry(), entry(device=None)], "chip 1: device must be a text"),
        ([entry(), entry(name="MINE")], "the name 'MINE' is taken; give chip 1 another"),
        ([entry(name="this cpu")], "the name 'this cpu' is taken"),
        ([entry(tflops=1)], "chip 0 'Mine': unknown field 'tflops'; the fields are name, device, memory_gb"),
        ([entry(sources={})], "unknown field 'sources'"),
        ([{k: v for k, v in entry().items() if k != "link_gb_s"}], f"'Mine': link_gb_s is missing; give it as {FORM}"),
        ([entry(memory_gb=8)], f"memory_gb must be {FORM}, not 8"),
        ([entry(memory_gb={"value": 8, "source": "x", "unit": "GB"})], "memory_gb must be"),
        ([entry(memory_gb={"value": 8})], "the source of memory_gb must be a text, not None"),
        ([entry(memory_gb={"value": "8", "source": "x"})], "the value of memory_gb must be a number, not '8'"),
        ([entry(memory_gb={"value": True, "source": "x"})], "the value of memory_gb must be a number, not True"),
        ([entry(memory_gb={"value": None, "source": "x"})], "the value of memory_gb must be a number, not None"),
        ([entry(fp16_tflops={"source": "x"})], "the value of fp16_tflops must be a number, not None"),
        ('[{"name": "a", "device": "b", "memory_gb": {"value": Infinity, "source": "x"}}]', "from .*, not inf"),
        ([entry(memory_gb={"value": 0, "source": "x"})], "the value of memory_gb must be from 1e-06 to 1e\\+09, not 0"),
        ([entry(latency_us={"value": -1, "source": "x"})], "the value of latency_us must be .*, not -1"),
        ([entry(memory_gb={"value": 1e308, "source": "x"})], "'Mine': the value of memory_gb must be .*, not 1e\\+308"),
        (
            [entry(bandwidth_gb_s={"value": 1e-300, "source": "x"})],
            "'Mine': the value of bandwidth_gb_s .*, not 1e-300",
        ),
        ([entry(memory_gb={"value": 10**399, "source": "x"})], "memory_gb must be .*, not a number of 400 digits"),
        (f'[{{"memory_gb": 1{"0" * 5000}}}]', "is not valid JSON: it holds a number of"),
        ([entry(name="a\x1b[2J")], r"name must be a text of printable characters, not 'a\\x1b\[2J'"),
        ([entry(name="two\nlines")], "name must be a text of printable characters"),
        ([entry(name="ALL")], "the name 'ALL' is taken"),
        (
            [entry(**{name: {"value": None, "source": "x"} for name in PEAKS.values()})],
            "one of fp16_tflops, .* a value",
        ),
        ([entry(shared="yes")], "shared must be true or false, not 'yes'"),
        ([entry(device_type="tpu")], "device_type must be one of npu, cuda, cpu, or null, not 'tpu'"),
        ([entry(int8_weights_in="int8")], "int8_weights_in must be one of fp16, bf16, fp32, or null, not 'int8'"),
        ([entry(int8_tops=4)], f"int8_tops must be {FORM}, not 4"),
    ],
)
def test_mistakes_name_file_chip_and_field(load: Callable[[Any], Any], content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"chips file .*mine.json.*{message}"):
        load(content)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chips file .*absent.json cannot be read: No such file"):
        load_chips(str(tmp_path / "absent.json"))


def test_an_empty_file_name() -> None:
    with pytest.raises(ConfigError, match="--chips_file is empty"):
        load_chips("")


def test_fields_that_a_file_may_leave_out(load: Callable[[Any], Any]) -> None:
    plain = load([entry()])["Mine"]
    assert (plain.int8_tops, plain.int8_weights_in, plain.device_type, plain.layouts) == (None, None, None, "reference")
    assert plain.sources["int8_tops"] == "none: not given" and plain.peak(torch.int8) == plain.peak(torch.float16)
    given = {"int8_tops": {"value": 20, "source": "a test"}, "int8_weights_in": "fp32", "device_type": "npu"}
    chip = load([entry(**given)])["Mine"]
    assert chip.peak(torch.int8) == 20e12 and chip.layouts == "npu"
    assert chip.peak(torch.float16, torch.int8) == chip.peak(torch.float32) == 2e12 < chip.peak(torch.float16)


def test_every_chip_of_the_table_has_a_rate_of_int8_and_a_device_type() -> None:
    for chip in load_chips().values():
        assert chip.int8_tops and chip.int8_tops > 1.5 * chip.peak(torch.float16) / 1e12, chip.name
        assert chip.device_type == ("npu" if chip.name.startswith("Atlas") else "cuda")
