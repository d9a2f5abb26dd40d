"""How fast a model can be: the roofline times of prefill and decode at fixed prompts, answers and batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from atb_models import ops
from atb_models.graph import meta_caches, meta_model, meta_step, trace
from atb_models.graph.graph import Node, Value
from atb_models.graph.meta import META
from atb_models.limits import BLOCK_SIZE
from atb_models.models.config import ModelConfig
from atb_models.models.quantization import layer_kinds
from atb_models.ops.cost import Cost
from atb_models.ops.step import StepInput
from atb_models.ops.table import TABLE
from atb_models.ops.top_logits import greedy_logits
from atb_models.plan.chips import Chip
from atb_models.plan.memory import one_of_each_layer
from atb_models.plan.roofline import Arithmetic, Times, arithmetic_of, operation_times

PAIRS = ((2048, 2048), (1024, 1024), (512, 512), (256, 256))  # tokens of prompt and answer
# Operations whose costs depend on the lengths of sequences, as the shapes of their tensors do not.
BY_LENGTHS = frozenset({ops.paged_attention.name, ops.latent_attention.name})
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Step(NamedTuple):
    """New tokens of each sequence, cached ones with these included, and the number of sequences that need logits."""

    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    logits: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of new tokens, sequences and logits."""
        return sum(self.query_lens), len(self.query_lens), self.logits


class Work(NamedTuple):
    """Calls of an operation with equal costs."""

    cost: Cost
    arithmetic: Arithmetic
    calls: int


@dataclass(frozen=True)
class Cell:
    """The times of a batch. first_token: all steps of its prompts. per_token: a step in the middle of its answers."""

    prompt: int
    answer: int
    batch: int
    first_token: Times
    per_token: Times

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of the whole batch while it decodes."""
        return self.batch / self.per_token.total


def roofline_cells(
    config: ModelConfig,
    dtype: torch.dtype,
    ranks: int,
    max_prefill_tokens: int,
    chips: Sequence[Chip],
    quantize: str | None = None,
    kv_dtype: torch.dtype | None = None,
) -> dict[str, list[Cell]]:
    """Chip -> the cells of all pairs that fit into the model's positions. Raises ConfigError as StepCosts does.

    Weights and cache lie as on a device of the chip's type, whatever this machine is.
    """
    cells = {chip.name: list[Cell]() for chip in chips}
    for device_type in dict.fromkeys(chip.layouts for chip in chips):
        with ops.laid_out_for(device_type):
            costs = StepCosts(config, dtype, ranks, quantize, kv_dtype)
            for chip in chips:
                if chip.layouts == device_type:
                    cells[chip.name] += _cells(_Prices(costs, chip, ranks), config, max_prefill_tokens)
    return cells


def _cells(prices: _Prices, config: ModelConfig, max_prefill_tokens: int) -> Iterator[Cell]:
    for prompt, answer in pairs_within(config.max_position_embeddings):
        for batch in BATCHES:
            prefill = prefill_steps(prompt, batch, max_prefill_tokens)
            decode = Step((1,) * batch, (prompt + answer // 2,) * batch, batch)
            first = sum((prices.step(step) * n for step, n in prefill.items()), Times())
            yield Cell(prompt, answer, batch, first, prices.step(decode))


def pairs_within(positions: int) -> list[tuple[int, int]]:
    """The pairs that fit into `positions`."""
    return [pair for pair in PAIRS if sum(pair) <= positions]


def prefill_steps(prompt: int, batch: int, budget: int) -> Counter[Step]:
    """The steps that read `batch` prompts in order, `budget` tokens each, and how often each step occurs.

    When a full step ends together with a prompt, the steps repeat from there; only those before it are computed.
    """
    repeats, others = divmod(batch, budget // math.gcd(prompt, budget))
    steps = Counter(
        {step: n * repeats for step, n in _steps_of((batch - others) // max(1, repeats), prompt, budget).items()}
    )
    steps.update(_steps_of(others, prompt, budget))
    return +steps


def _steps_of(prompts: int, prompt: int, budget: int) -> Counter[Step]:
    steps: Counter[Step] = Counter()
    left = [prompt] * prompts
    while left:
        queries, kv, room = list[int](), list[int](), budget
        while left and room:
            queries.append(min(left[0], room))
            kv.append(prompt - left[0] + queries[-1])
            room -= queries[-1]
            left[0] -= queries[-1]
            if not left[0]:
                left.pop(0)
        steps[Step(tuple(queries), tuple(kv), kv.count(prompt))] += 1
    return steps


def price(works: Iterable[Work], chip: Chip, ranks: int) -> Times:
    """The time of the operations one after another, without gaps."""
    return sum((operation_times(work.cost, work.arithmetic, chip, ranks) * work.calls for work in works), Times())


class _Prices:
    """The times of steps on a chip; what steps have in common is priced once."""

    def __init__(self, costs: StepCosts, chip: Chip, ranks: int) -> None:
        self._costs, self._chip, self._ranks = costs, chip, ranks
        self._steady: dict[tuple[int, int, int], Times] = {}
        self._steps: dict[Step, Times] = {}

    def step(self, step: Step) -> Times:
        if step not in self._steps:
            if step.shape not in self._steady:
                self._steady[step.shape] = price(self._costs.steady(step), self._chip, self._ranks)
            attention = price(self._costs.attention(step), self._chip, self._ranks)
            self._steps[step] = self._steady[step.shape] + attention
        return self._steps[step]


class StepCosts:
    """The costs of greedy steps on one of `ranks` ranks. Steps of equal shape share a trace."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        ranks: int,
        quantize: str | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Raises ConfigError if the ranks cannot share the model."""
        kinds = one_of_each_layer(config)
        self._model = meta_model(kinds, dtype, ranks, quantize=quantize, kv_dtype=kv_dtype)
        self._caches = meta_caches(self._model, 1, BLOCK_SIZE)
        self._layers = [len(alike) for alike in layer_kinds(config)]
        self._traces: dict[tuple[int, int, int], tuple[Node, ...]] = {}
        self._attention: dict[Step, list[Work]] = {}

    def works(self, step: Step) -> list[Work]:
        """All operations of a step of the whole model."""
        return self.steady(step) + self.attention(step)

    def steady(self, step: Step) -> list[Work]:
        """The operations with equal costs in all steps of this `shape`."""
        return [self._work(node, node.cost) for node in self._trace(step) if node.op not in BY_LENGTHS]

    def attention(self, step: Step) -> list[Work]:
        """The operations whose costs depend on lengths."""
        if step not in self._attention:
            nodes = [node for node in self._trace(step) if node.op in BY_LENGTHS]
            given = meta_step(step.query_lens, step.kv_lens, BLOCK_SIZE)
            self._attention[step] = [self._work(node, self._attention_cost(node, given)) for node in nodes]
        return self._attention[step]

    def _work(self, node: Node, cost: Cost) -> Work:
        dtypes = {value.argument: value.dtype for value in node.inputs}
        return Work(cost, arithmetic_of(node.op, dtypes, node.options), self._calls(node))

    def _trace(self, step: Step) -> tuple[Node, ...]:
        """A trace of any lengths; without logits, the operations on them are left out."""
        key = tokens, batch, logits = step.shape
        if key not in self._traces:
            lengths = [tokens - batch + 1] + [1] * (batch - 1)
            traced = meta_step(lengths, lengths, BLOCK_SIZE, top_logits=greedy_logits())
            traced = replace(traced, logits_rows_L=traced.logits_rows_L[:logits])
            nodes = trace(self._model, traced).nodes
            self._traces[key] = tuple(node for node in nodes if all(0 not in value.shape for value in node.outputs))
        return self._traces[key]

    def _attention_cost(self, node: Node, step: StepInput) -> Cost:
        """The cost with the lengths of `step` instead of the traced ones."""
        shown = {value.argument: _empty(value) for value in node.inputs}
        caches = {"cache": self._caches[int(node.module.split(".")[1])], "step": step}
        operation, given = TABLE[node.op], shown | node.options | caches
        return operation.cost(_empty(node.outputs[0]), *(given[name] for name in operation.parameters))

    def _calls(self, node: Node) -> int:
        """Calls in the whole model. The add and norm at the end of a layer belong to the norm that follows it."""
        top, _, rest = node.module.partition(".")
        if top == "norm":
            return self._layers[-1]
        if top != "layers":
            return 1
        layer, _, name = rest.partition(".")
        if name != "input_norm":
            return self._layers[int(layer)]
        return self._layers[int(layer) - 1] if int(layer) else 1


def _empty(value: Value) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=META)
