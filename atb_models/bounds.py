"""How fast an open `LLM` could be at given prompts, answers and batches: the plan's roofline times, as a library.

from atb_models.bounds import Batch, roofline
found = roofline(llm, [Batch(prompt=1024, answer=128, size=8)])
print(found.chip, found.times[0].prefill_s, found.times[0].decode_s)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch

from atb_models import ops
from atb_models.engine.kv_pool import engine_limits
from atb_models.errors import ConfigError
from atb_models.machine.cores import used_cores
from atb_models.machine.device import device_module
from atb_models.machine.memory import free_memory
from atb_models.models.dtypes import kv_torch_dtype, torch_dtype
from atb_models.plan.chips import ALL_CHIPS, THIS_CPU, Chip, chip_named_in, find_chip, load_chips
from atb_models.plan.this_cpu import measure_cpu
from atb_models.plan.times import Step, StepCosts, prefill_steps, price

if TYPE_CHECKING:
    from atb_models.engine.llm import LLM


class Batch(NamedTuple):
    """`size` requests of `prompt` tokens each, that get `answer` tokens each."""

    prompt: int
    answer: int
    size: int


class Bound(NamedTuple):
    """Least seconds: of the steps that read all prompts, and of a decode step at the middle of the answers."""

    prefill_s: float
    decode_s: float


class Roofline(NamedTuple):
    """The bounds of each batch, on the chip of that name; no chip and no times: `reason` says why."""

    chip: str | None
    times: list[Bound]
    reason: str = ""


def roofline(llm: LLM, batches: Iterable[Batch], *, chip: str | None = None, chips_file: str | None = None) -> Roofline:
    """The plan's times for this model, its storage, ranks and prompt tokens of a step, in the order of the batches.

    chip: a name of the table, which a JSON `chips_file` extends, or "this CPU"; None: what the LLM runs on, a CPU
    measured in about a second. Bounds from below, where tokens choose experts at random.

    Raises ConfigError for an unknown chip or a bad chips file.
    """
    found, reason = _chip(llm, chip, chips_file)
    if found is None:
        return Roofline(None, [], reason)
    model, ranks = llm._runner.model_config, llm._group.size
    dtype, kv_dtype = torch_dtype(model.run_dtype(llm.config.dtype)), kv_torch_dtype(llm.config.kv_dtype)
    budget = engine_limits(llm.config, model).max_prefill_tokens
    with ops.laid_out_for(found.layouts):
        costs = StepCosts(model, dtype, ranks, llm.config.quantize, kv_dtype)
        return Roofline(found.name, [_bound(costs, batch, budget, found, ranks) for batch in batches])


def check_chip(chip: str | None, chips_file: str | None) -> None:
    """Raises ConfigError as `roofline` does, before an LLM is opened."""
    _named(chip, load_chips(chips_file))


def _bound(costs: StepCosts, batch: Batch, budget: int, chip: Chip, ranks: int) -> Bound:
    def seconds(step: Step) -> float:
        return price(costs.works(step), chip, ranks).total

    prefill = sum(seconds(step) * times for step, times in prefill_steps(batch.prompt, batch.size, budget).items())
    amid = batch.prompt + batch.answer // 2
    return Bound(prefill, seconds(Step((1,) * batch.size, (amid,) * batch.size, batch.size)))


def _chip(llm: LLM, name: str | None, file: str | None) -> tuple[Chip | None, str]:
    """The chip, or why there is none."""
    chips, kind = load_chips(file), llm.device.type
    if named := _named(name, chips):
        return named, ""
    if name is None and kind != "cpu":
        device = device_module(kind).get_device_name()
        here = chip_named_in(device, chips)
        return (
            here,
            "" if here else f"{device} is not in the table of chips; --chip names one, --chips_file adds others",
        )
    try:
        return measure_cpu(used_cores(llm._group.ranks_here), free_memory(torch.device("cpu")).of_rank(1)), ""
    except MemoryError:
        return None, "there is too little memory to measure this CPU"


def _named(name: str | None, chips: Mapping[str, Chip]) -> Chip | None:
    """None for this CPU, which is to be measured, and where no chip is named."""
    if name is None or name.casefold() == THIS_CPU.casefold():
        return None
    if name.casefold() == ALL_CHIPS:
        raise ConfigError("the chip all is of --plan only; a run is compared with one chip, name it")
    return find_chip(name, chips)
