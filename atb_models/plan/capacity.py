"""Whether a model fits, and the message if it does not: the breakdown, and what would make it fit, with numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from atb_models import ops
from atb_models.errors import ConfigError
from atb_models.layers.heads import check_ranks
from atb_models.limits import Limits
from atb_models.models.config import ModelConfig
from atb_models.models.quantization import quantization_name, with_layers
from atb_models.ops.table import takes_quantized
from atb_models.plan.memory import RankMemory, rank_memory
from atb_models.wording import counted, gib

NUM_REMEDIES = 3
LEAST_PREFILL_TOKENS = 64
MOST_RANKS = 64
INT8 = "w8a16"  # the method that is suggested


@dataclass(frozen=True)
class Deployment:
    """A model on `size` ranks in a data type, within the limits of an engine.

    quantize: how weights are stored, see `model_quantization`. kv_dtype: of the KV cache; None: `dtype`. layouts: the
    device type as whose weights and cache its own lie; None: that which is bound.
    """

    model: ModelConfig
    dtype: torch.dtype
    size: int
    limits: Limits
    quantize: str | None = None
    kv_dtype: torch.dtype | None = None
    layouts: str | None = None

    def memory(self) -> RankMemory:
        """The memory of a rank; computed once."""
        return self._memory

    @property
    def storage(self) -> str | None:
        """The method by which the weights are stored, be it the checkpoint's own; None: floats."""
        return quantization_name(self.model, self.quantize)

    @cached_property
    def _memory(self) -> RankMemory:
        with ops.laid_out_for(self.layouts):
            return rank_memory(self.model, self.dtype, self.size, self.limits, self.quantize, self.kv_dtype)

    def memory_within(self, usable: int, blocks: int | None = None) -> RankMemory:
        """The memory with `usable` bytes a rank (and `blocks` KV blocks), which limit the length of a sequence."""
        memory = self.memory()
        fitting = max(0, usable - memory.weights) // memory.kv_block
        longest = max(1, fitting if blocks is None else min(fitting, blocks)) * memory.block_size
        if longest >= self.limits.max_seq_len:
            return memory
        return replace(self, limits=replace(self.limits, max_seq_len=longest)).memory()

    def start(self, usable: int, wanted: int | None = None) -> tuple[RankMemory, int]:
        """Memory and KV blocks of an engine whose ranks have `usable` bytes each.

        Blocks: the `wanted` ones, else those of a full batch, else as many as fit. 0: the engine cannot start.
        """
        memory = self.memory_within(usable, wanted)
        fitting = memory.kv_blocks(usable)
        blocks = wanted or min(self.limits.full_batch_blocks, fitting)
        return memory, blocks if blocks <= fitting else 0


@dataclass(frozen=True)
class Shortage:
    """A rank needs `memory` and may use `usable` bytes (perhaps a negative number): too few for `blocks` KV blocks.

    usable_by: number of ranks -> bytes that each could use, None if there cannot be so many. where: which memory
    that is. overrides: fields of config.json that are already replaced.
    """

    deployment: Deployment
    memory: RankMemory
    usable: int
    blocks: int
    usable_by: Callable[[int], int | None]
    where: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def message(self) -> str:
        """Several lines: what is available, weights, activations, rest, memory of one request, remedies."""
        deployment, memory, limits = self.deployment, self.memory, self.deployment.limits
        left = max(0, self.usable - memory.needed(0))
        longest = -(-limits.max_seq_len // limits.block_size) * memory.kv_block
        what = f"--kv_blocks {self.blocks} does not fit" if memory.kv_blocks(self.usable) else "the model does not fit"
        ranks = f"each of {deployment.size} ranks" if deployment.size > 1 else "it"
        needed = gib(memory.needed(self.blocks))
        lines = [
            f"{what}: {ranks} needs {needed} and may use {gib(max(0, self.usable))} {self.where}",
            f"  weights      {gib(memory.weights)}",
            f"  activations  {gib(memory.activations)} at most, in a step of {limits.max_prefill_tokens} prompt tokens"
            f" and {counted(limits.max_batch_size, 'sequence')}",
            *self._packing(),
            f"  left         {gib(left)} for the KV cache, which needs {gib(self.blocks * memory.kv_block)}"
            f" (blocks of {limits.block_size} tokens: {self.blocks})",
            f"  one request  {gib(memory.kv_block)} up to {limits.block_size} tokens, {gib(longest)} for"
            f" {limits.max_seq_len}",
            "what would make it fit:",
        ]
        remedies = islice(self.remedies(), NUM_REMEDIES)
        return "\n".join([*lines, *(f"  {number}. {remedy}" for number, remedy in enumerate(remedies, 1))])

    def _packing(self) -> list[str]:
        """A line of its own where loading takes more than a step."""
        memory = self.memory
        if memory.packing <= memory.activations:
            return []
        return [f"  packing      {gib(memory.packing)} while it is loaded"]

    def remedies(self) -> Iterator[str]:
        """Changes with which the model fits, by calculation; the mildest first. The last three are always given."""
        yield from self._fewer_blocks()
        yield from self._half_precision()
        yield from self._smaller_steps()
        yield from self._other_ranks()
        yield from self._int8_weights()
        yield from self._int8_cache()
        yield from self._fewer_layers()
        yield from self._more_memory()

    def _more_memory(self) -> Iterator[str]:
        """The memory that this run needs, its smallest form, and a full batch."""
        whom = f"for each of {self.deployment.size} ranks" if self.deployment.size > 1 else "for the process"
        needed, limits = self.memory.needed(self.blocks), self.deployment.limits
        yield f"{gib(needed)} of memory {whom}, {gib(needed - self.usable)} more than now"
        smallest = replace(limits, max_batch_size=1, max_prefill_tokens=LEAST_PREFILL_TOKENS)
        small = replace(self.deployment, limits=smallest).memory_within(self.usable, 1)
        yield f"{gib(small.needed(1))} {whom} with {_step_flags(smallest)} --kv_blocks 1, the least that it runs with"
        full = self.deployment.memory()
        enough = full.needed(limits.full_batch_blocks)
        yield f"{gib(enough)} {whom} hold {counted(limits.max_batch_size, 'sequence')} of {limits.max_seq_len} tokens"

    def _try(self, remedy: str, deployment: Deployment) -> list[str]:
        """`remedy` with the memory that a rank then needs, if that fits."""
        usable = self.usable if deployment.size == self.deployment.size else self.usable_by(deployment.size)
        if usable is None:
            return []
        needed = deployment.memory_within(usable, self.blocks).needed(self.blocks)
        return [f"{remedy}: a rank needs {gib(needed)}"] if needed <= usable else []

    def _half_precision(self) -> list[str]:
        if self.deployment.dtype != torch.float32:
            return []
        return self._try("--dtype fp16", replace(self.deployment, dtype=torch.float16))

    def _int8_weights(self) -> list[str]:
        if self.deployment.storage is not None or not takes_quantized():
            return []
        return self._try(f"--quantize {INT8}", replace(self.deployment, quantize=INT8))

    def _int8_cache(self) -> list[str]:
        if self.deployment.kv_dtype is not None:
            return []
        return self._try("--kv_dtype int8", replace(self.deployment, kv_dtype=torch.int8))

    def _other_ranks(self) -> list[str]:
        """The fewest ranks that fit."""
        for size in range(1, MOST_RANKS + 1):
            if size != self.deployment.size and _can_share(self.deployment.model, size):
                if found := self._try(f"--tp {size}", replace(self.deployment, size=size)):
                    return found
        return []

    def _smaller_steps(self) -> list[str]:
        """Fewer prompt tokens of a step, halved repeatedly: first with the same batch, then with one sequence."""
        now = self.deployment.limits
        for batch in dict.fromkeys((now.max_batch_size, 1)):
            tokens = now.max_prefill_tokens
            while tokens >= LEAST_PREFILL_TOKENS:
                limits = replace(now, max_prefill_tokens=tokens, max_batch_size=batch)
                if limits != now:
                    if found := self._try(_step_flags(limits), replace(self.deployment, limits=limits)):
                        return found
                tokens //= 2
        return []

    def _fewer_blocks(self) -> list[str]:
        fitting = self.memory.kv_blocks(self.usable)
        if not fitting:
            return []
        return [f"--kv_blocks {fitting}: a rank needs {gib(self.memory.needed(fitting))}"]

    def _fewer_layers(self) -> list[str]:
        """The most layers that fit. That is a trial, not the model any more."""
        model, best = self.deployment.model, list[str]()
        low, high = 0, model.num_hidden_layers - 1
        while low < high:
            middle = (low + high + 1) // 2
            shorter = with_layers(model, range(middle))
            overrides = json.dumps({**self.overrides, "num_hidden_layers": middle})
            found = self._try(
                f"as a trial {middle} of its {model.num_hidden_layers} layers, --config_overrides '{overrides}'",
                replace(self.deployment, model=shorter),
            )
            low, high, best = (middle, high, found) if found else (low, middle - 1, best)
        return best


def _step_flags(limits: Limits) -> str:
    return f"--max_prefill_tokens {limits.max_prefill_tokens} --max_batch_size {limits.max_batch_size}"


def _can_share(model: ModelConfig, size: int) -> bool:
    try:
        check_ranks(model.num_attention_heads, size)
    except ConfigError:
        return False
    return True
