"""The table of chips: memory, bandwidth, FLOP/s and links, each figure with its source. A user's file adds more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from atb_models.errors import ConfigError
from atb_models.files import read_text
from atb_models.json_file import parse_json
from atb_models.models.dtypes import torch_dtype

TABLE = Path(__file__).with_name("chips.json")
ALL_CHIPS = "all"  # value of --chip for all chips
THIS_CPU = "this CPU"  # measured, see this_cpu.py
TEXTS = ("name", "device")
PEAKS = {torch.float16: "fp16_tflops", torch.bfloat16: "bf16_tflops", torch.float32: "fp32_tflops"}
INT8 = "int8_tops"
RATES = PEAKS | {torch.int8: INT8}
FIGURES = ("memory_gb", "bandwidth_gb_s", *RATES.values(), "link_gb_s", "latency_us")
OPTIONAL = (INT8,)  # figures that a user's file may leave out
PLAIN = "reference"  # the layouts of a chip whose device type is not known: plain tensors
# Fields with a word as their value, or null.
CHOICES = {"int8_weights_in": ("fp16", "bf16", "fp32"), "device_type": ("npu", "cuda", "cpu")}
MOST_DIGITS = 24  # of a number in a message
LEAST, MOST = 1e-6, 1e9  # range of a figure: anything else is taken for a typing error
FORM = '[{"name": "...", "device": "...", "memory_gb": {"value": 64, "source": "..."}, ...}]'


@dataclass(frozen=True)
class Chip:
    """A device of one rank. GB: 10^9 bytes, but in `memory_gb` 2^30, as vendors mean it."""

    name: str
    device: str  # what counts as one device: a card, or a chip of a card
    memory_gb: float
    bandwidth_gb_s: float  # of its memory
    fp16_tflops: float | None  # of dense matrix products; None: unknown, or not supported
    bf16_tflops: float | None
    fp32_tflops: float | None
    link_gb_s: float  # from a device to the others
    latency_us: float  # of a collective, however small
    sources: Mapping[str, str] = field(compare=False)  # by figure
    shared: bool = False  # whether the ranks of a run share it: each then has its part of every figure
    int8_tops: float | None = None  # of dense products of int8 with int8
    # The data type in which int8 weights are multiplied with float activations; None: that of the activations.
    int8_weights_in: str | None = None
    device_type: str | None = None  # whose layouts of weights and KV cache a plan takes; None: plain ones

    @property
    def layouts(self) -> str:
        """The device type whose layouts a plan takes."""
        return self.device_type or PLAIN

    def peak(self, dtype: torch.dtype, weights: torch.dtype | None = None) -> float:
        """FLOP/s of products of `dtype` with weights that are stored as `weights` (None: as `dtype`).

        Without a figure: the fastest one of floats, as an upper bound.
        """
        known: float | None = getattr(self, RATES[self.works_in(dtype, weights)])
        return 1e12 * (known or max(value for name in PEAKS.values() if (value := getattr(self, name))))

    def works_in(self, dtype: torch.dtype, weights: torch.dtype | None = None) -> torch.dtype:
        """The data type whose rate these products have."""
        if weights == torch.int8 and dtype.is_floating_point and self.int8_weights_in is not None:
            return torch_dtype(self.int8_weights_in)
        return dtype


def load_chips(file: str | None = None) -> dict[str, Chip]:
    """Name -> chip of the table, extended by a user's JSON `file`, whose entries replace those of the same name.

    Raises ConfigError, which names the file, the chip and the field.
    """
    if file == "":
        raise ConfigError("--chips_file is empty; leave it out for the table's own chips")
    chips, own = _read(TABLE), _read(Path(file)) if file else {}
    names = {name.casefold() for name in own}
    return {name: chip for name, chip in chips.items() if name.casefold() not in names} | own


def find_chip(name: str, chips: Mapping[str, Chip]) -> Chip:
    """The chip of that name, in any case. Raises ConfigError, which lists the names."""
    for chip in chips.values():
        if chip.name.casefold() == name.casefold():
            return chip
    names = ", ".join(dict.fromkeys([*chips, THIS_CPU]))
    raise ConfigError(f"there is no chip {name!r} in the table; it has {names}; --chips_file adds others")


def chip_named_in(device: str, chips: Mapping[str, Chip]) -> Chip | None:
    """The chip whose name is contained, as whole words, in a device's name: H200 in "NVIDIA H200", not in "GH200"."""
    found = [chip for chip in chips.values() if re.search(rf"(?<!\w){re.escape(chip.name)}(?!\w)", device, re.I)]
    return found[0] if found and not re.search(rf"{re.escape(found[0].name)} (Ti|Super)\b", device, re.I) else None


def _read(path: Path) -> dict[str, Chip]:
    entries = parse_json(read_text(path, f"chips file {path}"), f"chips file {path}")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"chips file {path} must hold a list of chips, as {FORM}")
    chips: dict[str, Chip] = {}
    for number, entry in enumerate(entries):
        chip = _chip(entry, f"chips file {path}: chip {number}")
        if chip.name.casefold() in (name.casefold() for name in (*chips, THIS_CPU, ALL_CHIPS)):
            raise ConfigError(f"chips file {path}: the name {chip.name!r} is taken; give chip {number} another")
        chips[chip.name] = chip
    return chips


def _chip(entry: Any, where: str) -> Chip:
    """A chip from an entry of the file. where: the file and the place in it; later messages have the chip's name."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be an object with name, device and figures, as {FORM}, not {entry!r}")
    values: dict[str, Any] = {name: _text(entry.get(name), where, name) for name in TEXTS}
    where = f"{where} {values['name']!r}"
    known = {item.name for item in fields(Chip)} - {"sources"}
    for name in entry.keys() - known:
        fields_known = ", ".join((*TEXTS, *FIGURES, "shared", *CHOICES))
        raise ConfigError(f"{where}: unknown field {name!r}; the fields are {fields_known}")
    sources: dict[str, str] = {}
    for name in FIGURES:
        values[name], sources[name] = _figure(entry, where, name)
    if not any(values[name] for name in PEAKS.values()):
        raise ConfigError(f"{where}: one of {', '.join(PEAKS.values())} must have a value")
    values["shared"] = entry.get("shared", False)
    if not isinstance(values["shared"], bool):
        raise ConfigError(f"{where}: shared must be true or false, not {values['shared']!r}")
    for name, choices in CHOICES.items():
        values[name] = entry.get(name)
        if values[name] not in (None, *choices):
            raise ConfigError(f"{where}: {name} must be one of {', '.join(choices)}, or null, not {values[name]!r}")
    return Chip(**values, sources=sources)


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {name} must be a text, not {value!r}")
    if not value.isprintable():
        raise ConfigError(f"{where}: {name} must be a text of printable characters, not {value!r}")
    return value


def _figure(entry: dict[str, Any], where: str, name: str) -> tuple[float | None, str]:
    """A figure's value and source. Only a rate may be null, and only a latency may be 0."""
    figure = entry.get(name)
    if figure is None and name in OPTIONAL:
        return None, "none: not given"
    form = '{"value": number, "source": text}'
    if figure is None:
        raise ConfigError(f"{where}: {name} is missing; give it as {form}")
    if not isinstance(figure, dict) or figure.keys() - {"value", "source"}:
        raise ConfigError(f"{where}: {name} must be {form}, not {figure!r}")
    source = _text(figure.get("source"), where, f"the source of {name}")
    value = figure.get("value")
    if value is None and name in RATES.values() and "value" in figure:
        return None, source
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where}: the value of {name} must be a number, not {value!r}")
    if not (LEAST <= value <= MOST or (value == 0 and name == "latency_us")):
        found = repr(value)
        found = found if len(found) <= MOST_DIGITS else f"a number of {len(found)} digits"
        raise ConfigError(f"{where}: the value of {name} must be from {LEAST:g} to {MOST:g}, not {found}")
    return float(value), source
