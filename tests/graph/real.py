"""The embedded model and a step with values, and the recording of what its forward does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atb_models.engine.message import decode_step
from atb_models.graph.memory import StorageMode
from atb_models.graph.tracing import named_tensors
from atb_models.layers.build import Build
from atb_models.models.config_reader import load_model_config
from atb_models.models.decoder import Decoder, build_model
from atb_models.models.weights.loader import load_weights
from atb_models.models.weights.opening import open_weights
from atb_models.ops.kv_cache import LayerCache, make_cache
from atb_models.ops.step import StepInput
from atb_models.ops.table import Body, Op, recorded
from tests.records import map_tensors

CPU = torch.device("cpu")
BLOCK_SIZE, NUM_BLOCKS = 16, 24


def real_model(folder: Path, dtype: torch.dtype) -> Decoder:
    config = load_model_config(folder)
    model = build_model(config, Build(dtype, CPU))
    source = open_weights(folder, "auto", model, config)
    load_weights(model, config, source, progress=False)
    source.close()
    return model


def real_step() -> StepInput:
    """The second chunk of a prompt, 300 tokens after 20, and two sequences that generate; as a step message has it."""
    query_lens, kv_lens = [300, 1, 1], [320, 40, 7]
    tables = [list(range(20)), [20, 21, 22] + [0] * 17, [23] + [0] * 19]
    tokens = torch.randint(5, 2000, (sum(query_lens),), generator=torch.Generator().manual_seed(0)).tolist()
    header = [len(tables), len(tables[0]), len(tokens), 0, *query_lens, *kv_lens, 1, 1, 1]
    return decode_step(np.array([*header, *sum(tables, []), *tokens], dtype=np.int32), BLOCK_SIZE, CPU)


def meta_like(step: StepInput) -> StepInput:
    """The same step without values."""
    bare: StepInput = map_tensors(lambda x: x.to("meta"), step)
    return bare


def real_caches(model: Decoder) -> list[LayerCache]:
    def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    return [make_cache(layer.attn.planes, NUM_BLOCKS, BLOCK_SIZE, zeros) for layer in model.layers]


@dataclass
class Watched:
    """What a forward with values did: operations with the bytes of activations at their peak, and stray functions."""

    peaks: list[tuple[str, int]] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)


def watch(model: Decoder, step: StepInput, caches: list[LayerCache]) -> Watched:
    """Run the forward under a dispatch mode that knows whether an operation is running."""
    watched, running = Watched(), False

    def work(function: str) -> None:
        if not running:
            watched.stray.append(function)

    def wrap(op: Op, run: Body, args: tuple[Any, ...]) -> Any:
        nonlocal running
        running, memory.peak = True, memory.live
        try:
            return run(*args)
        finally:
            running = False
            watched.peaks.append((op.name, memory.peak))

    memory = StorageMode(list(named_tensors(model, step, caches).values()), work)
    with torch.no_grad(), memory, recorded(wrap):
        model(step, caches)
    return watched
