"""--plan: print what a model needs and how fast it can be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from atb_models.launcher.subject import Subject
from atb_models.layers.heads import check_ranks
from atb_models.machine.cores import used_cores
from atb_models.machine.device import device_module
from atb_models.machine.memory import free_memory
from atb_models.models.dtypes import kv_torch_dtype, torch_dtype
from atb_models.plan.capacity import Deployment
from atb_models.plan.chips import ALL_CHIPS, PLAIN, THIS_CPU, Chip, chip_named_in, find_chip, load_chips
from atb_models.plan.plan import make_plan, to_json
from atb_models.plan.report import to_text
from atb_models.plan.this_cpu import measure_cpu


@dataclass(frozen=True)
class PlanOptions:
    """The flags of these names."""

    format: str  # text or json
    chip: str | None
    chips_file: str | None


def print_plan(subject: Subject, options: PlanOptions) -> None:
    """On stdout, as text or JSON; without "this CPU" where memory is too short to measure it.

    Raises ConfigError for an unknown chip, a bad chips file or too many ranks."""
    chips = load_chips(options.chips_file)
    in_full = _shown_in_full(options.chip, subject.device, chips)
    check_ranks(subject.model.num_attention_heads, subject.tp)
    dtype = torch_dtype(subject.dtype)
    kv_dtype = kv_torch_dtype(subject.kv_dtype)
    deployment = Deployment(subject.model, dtype, subject.tp, subject.limits, subject.quantize, kv_dtype)
    with suppress(MemoryError):
        chips[THIS_CPU] = measure_cpu(used_cores(subject.tp), free_memory(torch.device("cpu")).of_rank(1))
    here, cards = _free_here(subject), PLAIN if subject.device == "cpu" else subject.device
    plan = make_plan(subject.folder, subject.dtype, deployment, here, chips, subject.kv_blocks, cards)
    if options.format == "json":
        sys.stdout.write(json.dumps(to_json(plan), indent=2) + "\n")
    else:
        sys.stdout.write(to_text(plan, [name for name in in_full if name in chips]))
    sys.stdout.flush()


def _shown_in_full(name: str | None, device: str, chips: Mapping[str, Chip]) -> list[str]:
    """Names of chips: those asked for, else the machine's own if the table has it."""
    if name is None and device != "cpu":
        here = chip_named_in(device_module(device).get_device_name(), chips)
        return [here.name] if here else []
    if name is None or name.casefold() == THIS_CPU.casefold():
        return [THIS_CPU]
    return [*chips, THIS_CPU] if name.casefold() == ALL_CHIPS else [find_chip(name, chips).name]


def _free_here(subject: Subject) -> int | None:
    """Bytes that each rank may use; None: there are fewer devices than ranks."""
    if subject.device != "cpu" and device_module(subject.device).device_count() < subject.tp:
        return None
    return free_memory(torch.device(subject.device)).of_rank(subject.tp)
