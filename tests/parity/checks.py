"""The checks of parity, which kept ranks run too: the conditions of the engine and what must come out under each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from atb_models import LLM, RequestOutput, SamplingParams
from atb_models.engine.scheduler import Row
from atb_models.layers.storage import METHODS, Storage
from tests import quantized
from tests.parity.golden import PROMPTS, Golden
from tests.parity.plain import plain_logits
from tests.quantized import dequantized

GREEDY = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


@dataclass(frozen=True)
class Condition:
    """Engine arguments and what `metrics()` must show to prove that the condition came about."""

    arguments: dict[str, Any] = field(default_factory=dict)
    together: bool = True  # all prompts in one call, or one call each
    happened: tuple[str, int] = ("steps", 1)  # a counter of metrics() and its least value


CONDITIONS = {
    "one_by_one": Condition(together=False),
    "batched": Condition(happened=("largest_batch", 5)),
    "chunks_of_16": Condition({"max_prefill_tokens": 16}, happened=("chunks", 30)),
    "blocks_of_16": Condition({"block_size": 16}, happened=("total_blocks", 5 * 1024 // 16)),
    "preempted": Condition({"block_size": 16, "kv_blocks": 34}, happened=("preemptions", 1)),
    "prefix_hit": Condition({"block_size": 16, "prefix_cache": True}, happened=("prefix_hit_tokens", 300)),
}
# In blocks that the operators of the NPU take.
NPU_CONDITIONS = {
    "blocks_of_256": Condition({"block_size": 256}, happened=("total_blocks", 5 * 1024 // 256)),
    "whole_blocks_hit": Condition({"prefix_cache": True}, happened=("prefix_hit_tokens", 384)),
}
COUNTED_UP = ("steps", "chunks", "preemptions", "prefix_hit_tokens")


def run(folder: str, name: str, dtype: str, device: str = "cpu") -> None:
    """Check all logits of all prompts and each answer's first ones under one condition, in fp32 the greedy tokens too.

    folder: a golden checkpoint; its ranks are those of the environment.
    """
    golden = Golden(Path(folder))
    params = GREEDY if dtype == "fp32" or name == "preempted" else SHORT  # it is growing that preempts
    condition = (CONDITIONS | NPU_CONDITIONS)[name]
    arguments = {"max_batch_size": 5, "prefix_cache": False, **condition.arguments}
    with LLM(golden.path, dtype=dtype, device=device, **arguments) as llm:
        batches = [golden.prompts] if condition.together else [[prompt] for prompt in golden.prompts]
        logits = [one for batch in batches for one in llm.prompt_logits(batch)]
        before = llm.metrics()
        outputs, firsts = generate(llm, batches, params)
        after = llm.metrics()
    counter, least = condition.happened
    happened = after[counter] - (before[counter] if counter in COUNTED_UP else 0)
    assert happened >= least, f"{name}: {counter} is {happened}"
    golden.check_logits(logits, dtype)
    for k in PROMPTS:
        golden.check_last(k, firsts[k], dtype)
        if dtype == "fp32":
            golden.check_greedy(k, outputs[k].token_ids)


def generate(
    llm: LLM, batches: list[list[list[int]]], params: SamplingParams
) -> tuple[list[RequestOutput], list[Tensor]]:
    """Outputs, and for each prompt the logits its first new token was taken from."""
    outputs: list[RequestOutput] = []
    firsts: list[Tensor] = []
    for batch in batches:
        seen: dict[int, Tensor] = {}

        def keep(rows: list[Row], logits: Tensor, _: list[int], seen: dict[int, Tensor] = seen) -> None:
            for row, line in zip([row for row in rows if row.completes], logits, strict=True):
                if len(row.seq.token_ids) == row.seq.num_prompt_tokens:
                    seen[row.seq.index] = line.to("cpu", copy=True)

        llm.on_step = keep
        outputs += llm.generate(batch, params)
        firsts += [seen[index] for index in range(len(batch))]
    return outputs, firsts


def check_plain(folder: str, quantize: str | None = None) -> None:
    """fp32 logits of a prompt in chunks, and the greedy continuation, as the plain implementation has them.

    folder: a checkpoint in one file; its ranks are those of the environment. With `quantize` the plain implementation
    gets the floats that the quantised weights stand for.
    """
    token_ids = torch.randint(3, 250, (37,), generator=torch.Generator().manual_seed(1)).tolist()
    with LLM(folder, dtype="fp32", device="cpu", block_size=16, max_prefill_tokens=20, quantize=quantize) as llm:
        ours = llm.prompt_logits(token_ids)
        (output,) = llm.generate([token_ids], SamplingParams(max_tokens=6, temperature=0, ignore_eos=True))
    config, tensors = json.loads(Path(folder, "config.json").read_text()), load_file(Path(folder, "model.safetensors"))
    exact = plain_logits(config, dequantized(tensors, quantize) if quantize else tensors, token_ids + output.token_ids)
    assert (ours - exact[: len(token_ids)]).abs().max() <= 2e-4
    assert output.token_ids == exact[len(token_ids) - 1 : -1].argmax(dim=1).tolist()


def check_cut_groups(folder: str, group: int) -> None:
    """check_plain of w4a16 with other groups, in the engine and in the plain implementation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "w4a16", Storage(4, group=group))
        patch.setattr(quantized, "GROUP", group)
        check_plain(folder, "w4a16")


def check_quantized_by_torch(folder: str, quantize: str = "w8a16") -> None:
    """check_plain without the native library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATB_CPU_ISA", "reference")
        check_plain(folder, quantize)
