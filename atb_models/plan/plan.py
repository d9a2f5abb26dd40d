"""A plan: what a model needs on a number of ranks and how fast it can be, all from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from atb_models.graph.labels import dtype_name
from atb_models.ops.table import takes_latent_attention, takes_quantized
from atb_models.plan.capacity import Deployment
from atb_models.plan.chips import FIGURES, PLAIN, THIS_CPU, Chip
from atb_models.plan.fits import CARD_GIB, Fit, fits, usable
from atb_models.plan.memory import RankMemory
from atb_models.plan.padding import Padding, count_padding
from atb_models.plan.parameters import Parameters, count_parameters
from atb_models.plan.times import PAIRS, Cell, pairs_within, roofline_cells
from atb_models.wording import GIB


@dataclass(frozen=True)
class Plan:
    """A plan. here: bytes that each rank may use on this machine; None if it has fewer devices than ranks.

    kv_blocks: the number that was asked for; None: those of a full batch.
    """

    folder: str
    dtype: str
    deployment: Deployment
    parameters: Parameters
    memory: RankMemory  # of a rank, with the layouts of the device that is bound
    memory_of: Mapping[str, RankMemory]  # by the layouts of the chips
    padding: Padding
    here: int | None
    fits: list[Fit]
    chips: Mapping[str, Chip]
    cells: Mapping[str, list[Cell]]  # by chip
    kv_blocks: int | None = None

    @property
    def left_out(self) -> list[tuple[int, int]]:
        """The pairs that are longer than the model's positions."""
        within = pairs_within(self.deployment.model.max_position_embeddings)
        return [pair for pair in PAIRS if pair not in within]

    @property
    def kv_tokens_here(self) -> int | None:
        """Tokens of KV cache of an engine on this machine; 0: it cannot start."""
        return None if self._start is None else self._start[1] * self.memory.block_size

    @property
    def missing_here(self) -> int:
        """Bytes that a rank lacks on this machine; 0 if an engine can start."""
        if self.here is None or self._start is None:
            return 0
        return max(0, self._start[0].needed(self.kv_blocks or 1) - self.here)

    @cached_property
    def _start(self) -> tuple[RankMemory, int] | None:
        return None if self.here is None else self.deployment.start(self.here, self.kv_blocks)

    def holds(self, chip: Chip, cell: Cell) -> bool:
        """Whether the memory of the ranks' chips holds the whole batch of a cell at its full length."""
        if chip.name == THIS_CPU and self.here is not None:
            room = self.here
        else:
            room = int(chip.memory_gb * GIB) // self.deployment.size if chip.shared else usable(chip.memory_gb)
        memory = self.memory_of[chip.layouts]
        blocks = cell.batch * -(-(cell.prompt + cell.answer) // memory.block_size)
        return memory.kv_blocks(room) >= blocks


def make_plan(
    folder: str,
    dtype: str,
    deployment: Deployment,
    here: int | None,
    chips: Mapping[str, Chip],
    kv_blocks: int | None = None,
    card_layouts: str = PLAIN,
) -> Plan:
    """Make a plan. Raises ConfigError if the ranks cannot share the model.

    Chips and cards have the layouts of their own devices, not those of this machine: its CPU library packs weights.
    """
    parameters, memory = count_parameters(deployment.model), deployment.memory()
    cards = replace(deployment, layouts=card_layouts)
    kinds = dict.fromkeys(chip.layouts for chip in chips.values())
    budget = deployment.limits.max_prefill_tokens
    return Plan(
        folder=folder,
        dtype=dtype,
        deployment=deployment,
        parameters=parameters,
        memory=memory,
        memory_of={kind: replace(deployment, layouts=kind).memory() for kind in kinds},
        padding=count_padding(
            deployment.model, deployment.dtype, deployment.size, deployment.quantize, deployment.kv_dtype
        ),
        here=here,
        fits=fits(cards, cards.memory(), parameters.total),
        chips=chips,
        cells=roofline_cells(
            deployment.model,
            deployment.dtype,
            deployment.size,
            budget,
            list(chips.values()),
            deployment.quantize,
            deployment.kv_dtype,
        ),
        kv_blocks=kv_blocks,
    )


def refusal(deployment: Deployment, chip: Chip) -> str | None:
    """What the engine does not take on a device of the chip's type today; None: it serves the model there."""
    if deployment.storage is not None and not takes_quantized(chip.layouts):
        return "quantised weights"
    if deployment.model.latent is not None and not takes_latent_attention(chip.layouts):
        return "latent attention"
    return None


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values: bytes, seconds, and the figures of chips in the units of their names."""
    deployment, model, memory = plan.deployment, plan.deployment.model, plan.memory
    rank = {name: getattr(memory, name) for name in ("weights", "activations", "kv_per_token")}
    return {
        "model": {
            "folder": plan.folder,
            "family": model.model_type,
            "layers": model.num_hidden_layers,
            "dtype": plan.dtype,
            "quantize": deployment.storage,
            "kv_dtype": None if deployment.kv_dtype is None else dtype_name(deployment.kv_dtype),
            "parameters": plan.parameters._asdict(),
        },
        "ranks": deployment.size,
        "limits": asdict(deployment.limits),
        "memory": {
            "rank": rank,
            "all": {name: deployment.size * value for name, value in rank.items()},
            "padding": _padding(plan.padding),
            "rank_may_use_here": plan.here,
            "kv_tokens_here": plan.kv_tokens_here,
            "missing_here": plan.missing_here,
        },
        "cards": [_fit(fit) for fit in plan.fits],
        "pairs_left_out": [list(pair) for pair in plan.left_out],
        "chips": {name: _chip(plan, chip) for name, chip in plan.chips.items()},
    }


def _padding(padding: Padding) -> dict[str, Any]:
    """Heads, and the parts of the bytes of all ranks that are zeros."""
    shares = padding.shares
    return {
        "heads_of_a_rank": shares.heads,
        "zero_heads": shares.zero_heads,
        "ranks_without_heads": padding.without_heads,
        "weights": padding.weights,
        "kv_per_token": padding.kv_per_token,
    }


def _fit(fit: Fit) -> dict[str, Any]:
    row: dict[str, Any] = {"cards": fit.cards, "rule_of_thumb": fit.rule_bytes}
    if fit.memory is None:
        return row | {"refusal": fit.refusal}
    return row | {
        "weights": fit.memory.weights,
        "activations": fit.memory.activations,
        "kv_per_token": fit.memory.kv_per_token,
        "kv_tokens": {f"{size} GiB": fit.kv_tokens(size) for size in CARD_GIB},
        "missing": {f"{size} GiB": fit.missing(size) for size in CARD_GIB},
    }


def _chip(plan: Plan, chip: Chip) -> dict[str, Any]:
    return {
        "device": chip.device,
        "shared": chip.shared,
        "device_type": chip.device_type,
        "int8_weights_in": chip.int8_weights_in,
        "served": refusal(plan.deployment, chip) is None,
        "figures": {name: {"value": getattr(chip, name), "source": chip.sources[name]} for name in FIGURES},
        "times": [_cell(cell) | {"fits": plan.holds(chip, cell)} for cell in plan.cells[chip.name]],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "prompt": cell.prompt,
        "answer": cell.answer,
        "batch": cell.batch,
        "first_token_s": asdict(cell.first_token),
        "per_token_s": asdict(cell.per_token),
        "tokens_per_second": cell.tokens_per_second,
    }
