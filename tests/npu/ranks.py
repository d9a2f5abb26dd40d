"""Ranks that stay for many runs: importing torch_npu costs a process more than most runs do.

This module is also the program of the ranks from 1 up: a JSON line says where to meet and which run of `RUNS` it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from atb_models import LLM, SamplingParams
from atb_models.engine.scheduler import Row
from tests.launcher.processes import any_port
from tests.npu.soft import counts
from tests.parity import checks
from tests.parity.golden import Golden


class Decoded(NamedTuple):
    """What was generated: each prompt with its answer, the logits [tokens, V] from which the answer was taken, and how
    often a sequence was preempted."""

    texts: list[list[int]]
    logits: list[Tensor]
    preemptions: int


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


def parity(folder: str, condition: str, dtype: str) -> None:
    """The measures of tests/parity for all prompts, whose first generated tokens come from captured steps."""
    counts.reset()
    checks.run(folder, condition, dtype, "npu")
    assert counts.GRAPHS["replayed"] > 0


def decode(folder: str, dtype: str, tp: int, kv_blocks: int, tokens: int, kv_dtype: str = "auto") -> Decoded:
    """Greedy answers to the three short prompts."""
    prompts = Golden(Path(folder)).prompts[:3]
    lines: list[list[Tensor]] = [[] for _ in prompts]

    def keep(rows: list[Row], logits: Tensor, _: list[int]) -> None:
        for row, line in zip([row for row in rows if row.completes], logits, strict=True):
            lines[row.seq.index].append(line.to("cpu", copy=True))

    pool: dict[str, Any] = {"kv_blocks": kv_blocks, "kv_dtype": kv_dtype, "prefix_cache": False}
    with LLM(folder, dtype=dtype, tp=tp, device="npu", **pool) as llm:
        llm.on_step = keep
        outputs = llm.generate(prompts, greedy(tokens))
        preemptions = llm.metrics()["preemptions"]
    texts = [prompt + out.token_ids for prompt, out in zip(prompts, outputs, strict=True)]
    return Decoded(texts, [torch.stack(own) for own in lines], preemptions)


def logits(folder: str, dtype: str, quantize: str | None, golden: str) -> list[Tensor]:
    """[T, V] float32 of each prompt of `golden`: the first in a step of its own, the others together, a few tokens
    generated."""
    prompts = Golden(Path(golden)).prompts
    with LLM(folder, dtype=dtype, device="npu", quantize=quantize, max_batch_size=5, prefix_cache=False) as llm:
        ours = [llm.prompt_logits(prompts[0]), *llm.prompt_logits(prompts[1:])]
        llm.generate(prompts, greedy(2))
        assert llm.metrics()["largest_batch"] == 5
    return [one.cpu() for one in ours]


def int8_prompts(folder: str, dtype: str, most: int, chunk: int | None, block_size: int) -> list[Tensor]:
    """[T, V] float32 of the first `most` tokens of each golden prompt over an int8 cache, each in chunks."""
    prompts = [prompt[:most] for prompt in Golden(Path(folder)).prompts]
    limits: dict[str, Any] = {"max_prefill_tokens": chunk, "block_size": block_size}
    with LLM(folder, dtype=dtype, device="npu", kv_dtype="int8", **limits) as llm:
        ours = [llm.prompt_logits(prompt).cpu() for prompt in prompts]
        assert llm.metrics()["chunks"] == sum(-(-len(prompt) // (chunk or most)) for prompt in prompts)
    return ours


def int8_hits(folder: str, dtype: str) -> list[Tensor]:
    """[V] float32 after each golden prompt over an int8 cache that has had it before."""
    last: list[Tensor] = []
    with LLM(folder, dtype=dtype, device="npu", kv_dtype="int8") as llm:
        for prompt in Golden(Path(folder)).prompts:
            llm.generate([prompt], greedy(1))
            llm.on_step = lambda rows, logits, _: last.append(logits[0].to("cpu", copy=True))
            llm.generate([prompt], greedy(1))
            llm.on_step = None
        assert llm.metrics()["prefix_hit_tokens"] == 128 + 256
    return last


RUNS: dict[str, Callable[..., Any]] = {
    **{"parity": parity, "decode": decode, "logits": logits},
    **{"int8_prompts": int8_prompts, "int8_hits": int8_hits},
}


class Ranks:
    """`size` ranks: this process is rank 0, the others wait for its runs. A context manager, which ends them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._place = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        self._others = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.npu.ranks"],
                env=os.environ | self._place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                text=True,
            )
            for rank in range(1, size)
        ]

    def run(self, name: str, *words: Any) -> Any:
        """What RUNS[name] gives on rank 0."""
        port = str(any_port())
        for process in self._others:
            assert process.stdin is not None and process.poll() is None, "a rank has died in an earlier run"
            process.stdin.write(json.dumps([port, name, *words]) + "\n")
            process.stdin.flush()
        own = {**self._place, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port} if self._others else {}
        with mock.patch.dict(os.environ, own):
            return RUNS[name](*words)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._others:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._others:
            process.wait()


def main() -> None:
    for line in sys.stdin:
        os.environ["MASTER_PORT"], name, *words = json.loads(line)
        with contextlib.suppress(SystemExit):  # where the LLM of another rank than 0 ends
            RUNS[name](*words)


if __name__ == "__main__":
    main()
